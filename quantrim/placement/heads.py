"""The layers that make a model's outputs: what a detector keeps float.

A detector's last convolutions feed exponentials and a threshold on scores, and boxes in pixels and scores in
0..1 often meet in one Concat, whose single scale rounds every score to 0 (onnxruntime issues 10787, 14233).
PaddleDetection keeps ``yolo_output`` float for the same reason.
"""

from __future__ import annotations

from quantrim.graph.ops import LINEAR_OPS
from quantrim.graph.view import Graph


def head_layers(graph: Graph) -> frozenset[str]:
    """Names of the linear nodes from which an output is reached without passing another linear node."""
    reached, heads = set(graph.outputs), set()
    for node in reversed(graph.nodes):
        if reached.isdisjoint(node.outputs):
            continue
        if node.op in LINEAR_OPS and node.weight is not None:
            heads.add(node.name)
        else:
            reached.update(node.inputs)
    return frozenset(heads)
