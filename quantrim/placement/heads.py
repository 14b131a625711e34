"""The layers that make a model's outputs: what a detector keeps float.

A detector's last convolutions feed exponentials and a threshold on scores, and boxes in pixels and scores in
0..1 often meet in one Concat, whose single scale rounds every score to 0 (onnxruntime issues 10787, 14233).
PaddleDetection keeps ``yolo_output`` float for the same reason.

A graph shows that it is a detector's where it ends in three convolutions or more, with no layer behind any of
them but expectations: boxes and scores of each level. An expectation is a layer with a constant weight that
reads a softmax, the integral of distribution focal loss; in INT8 it costs YOLO11 0.3 to 0.5 AP (ultralytics
pull request 25306), so it stays float wherever it stands.
"""

from __future__ import annotations

from quantrim.graph.ops import LINEAR_OPS, having
from quantrim.graph.view import Graph, Node

#: Last convolutions that show a detector.
_HEADS = 3


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


def detector_heads(graph: Graph) -> dict[str, str]:
    """Names of the layers that stay float at the end of a detector, and of expectations → reason."""
    found = {node.name: "expectation over a softmax" for node in graph.nodes if _is_expectation(graph, node)}
    before_a_layer: set[str] = set()  # tensors on which a layer depends
    last: list[Node] = []
    for node in reversed(graph.nodes):
        is_layer = (node.op in LINEAR_OPS or node.op == "matmul") and node.name not in found
        depends = not before_a_layer.isdisjoint(node.outputs)
        if is_layer and not depends:
            last.append(node)
        if is_layer or depends:
            before_a_layer.update(node.inputs)
    if len(last) >= _HEADS and all(node.op == "conv" for node in last):
        found |= {node.name: "head of a detector: boxes and scores stay float" for node in last}
    return found


def _is_expectation(graph: Graph, node: Node) -> bool:
    """Whether a layer with a constant weight reads a softmax, moved about or not."""
    if node.op not in LINEAR_OPS or node.weight is None or not node.inputs:
        return False
    maker = graph.producer.get(node.inputs[0])
    while maker is not None and maker.op in having("moves") and maker.inputs:
        maker = graph.producer.get(maker.inputs[0])
    return maker is not None and maker.op == "softmax"
