"""Padding that goes round, in operators that every engine has.

OpenVINO 2026.4 knows no ``Pad`` of mode "wrap", which torch's padding mode "circular" becomes, and doesn't load
the file. The same values are the end of an axis, the tensor, and the beginning of the axis, joined.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def wrap_by_slices(model: ir.Model) -> None:
    """Replace every ``Pad`` of mode "wrap" and constant, non-negative widths by slices and concats."""
    for node in list(model.graph):
        if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "wrap":
            continue
        widths = _widths(node)
        if widths is not None and all(width >= 0 for pair in widths.values() for width in pair):
            _replace(model, node, widths)


def _widths(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """Axis → values in front and behind; None where they are not constant."""
    pads, axes = _integers(node, 1), _integers(node, 3)
    source = node.inputs[0]
    if pads is None or (axes is None and len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    dims = len(pads) // 2
    rank = dims if source is None or source.shape is None else len(source.shape)
    named = [axis % rank for axis in axes] if axes is not None else list(range(dims))
    return {axis: (pads[i], pads[dims + i]) for i, axis in enumerate(named) if pads[i] or pads[dims + i]}


def _replace(model: ir.Model, node: ir.Node, widths: dict[int, tuple[int, int]]) -> None:
    made: list[ir.Node] = []
    value = node.inputs[0]
    assert value is not None
    old = node.outputs[0]
    for axis, (front, behind) in widths.items():
        parts = [value]
        if front:
            parts.insert(0, _slice(model, made, value, axis, -front, np.iinfo(np.int64).max))
        if behind:
            parts.append(_slice(model, made, value, axis, 0, behind))
        joined = ir.node("Concat", parts, {"axis": axis}, name=f"{node.name or old.name}_axis{axis}")
        joined.outputs[0].name, joined.outputs[0].type = f"{old.name}_axis{axis}", old.type
        made.append(joined)
        value = joined.outputs[0]
    value.name, value.shape, value.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], made, [old], [value])


def _slice(model: ir.Model, made: list[ir.Node], value: ir.Value, axis: int, first: int, last: int) -> ir.Value:
    name = f"{value.name}_{'front' if first < 0 else 'behind'}{axis}"
    operands = [
        _constant(model, f"{name}_{part}", number)
        for part, number in (("starts", first), ("ends", last), ("axes", axis))
    ]
    node = ir.node("Slice", [value, *operands], name=name)
    node.outputs[0].name, node.outputs[0].type = name, value.type
    made.append(node)
    return node.outputs[0]


def _integers(node: ir.Node, position: int) -> list[int] | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def _constant(model: ir.Model, name: str, number: int) -> ir.Value:
    tensor = ir.tensor(np.array([number], np.int64), name=name)
    value = ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
