"""Bodies of control-flow nodes: what they hold and what they read from outside."""

from __future__ import annotations

import onnx_ir as ir


def captured(node: ir.Node) -> list[str]:
    """Tensors of the outer graph that the branches or bodies of a control-flow node read."""
    names: list[str] = []
    for body in subgraphs(node):
        inside = {value for inner in body for value in inner.outputs} | set(body.inputs)
        inside |= set(body.initializers.values())
        for inner in body:
            names += [str(v.name) for v in inner.inputs if v is not None and v not in inside]
            names += [name for name in captured(inner) if name not in {v.name for v in inside}]
        names += [str(v.name) for v in body.outputs if v not in inside]
    return names


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Bodies of a control-flow node; empty for any other."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.value)
    return found
