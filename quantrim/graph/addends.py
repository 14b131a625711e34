"""What is added to and multiplied onto the result of a linear op, brought to one form.

1. Scaling and shifting by constants, one number a channel, go into the weight and bias of the linear op before
   them: FrozenBatchNorm, layer scale, a subtraction written behind a convolution.
2. ``Gemm``: ``alpha`` and ``beta`` go into its constants; a bias that broadcasts over the rows becomes a
   vector, one number a column; any other addend (a table of positions, another tensor) becomes an Add.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantrim.graph.constants import array_of, new_constant

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm"})
_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})


def vector_addends(model: ir.Model) -> None:
    """Give every Gemm ``alpha`` = ``beta`` = 1 and a bias of one number a column, or none."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and array_of(node.inputs[1]) is not None:
            _scale_into_constants(model, node)
            _vector_or_add(model, node)


def _scale_into_constants(model: ir.Model, node: ir.Node) -> None:
    for name, position in (("alpha", 1), ("beta", 2)):
        factor = node.attributes.get_float(name, 1.0)
        operand = node.inputs[position] if len(node.inputs) > position else None
        array = array_of(operand)
        if factor != 1.0 and operand is not None and array is not None:
            scaled = new_constant(model, f"{operand.name}_{name}", array * np.float32(factor))
            node.replace_input_with(position, scaled)
            del node.attributes[name]


def _vector_or_add(model: ir.Model, node: ir.Node) -> None:
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    if addend is None:
        return
    columns = _channels(node)
    array = array_of(addend)
    if array is not None and array.size in (1, columns) and (array.ndim == 0 or array.shape[-1] == array.size):
        if array.shape != (columns,):
            vector = np.broadcast_to(array.reshape(-1), (columns,)).copy()
            node.replace_input_with(2, new_constant(model, f"{addend.name}_vector", vector))
        return
    if node.attributes.get_float("beta", 1.0) != 1.0:
        return  # a scaled addend that is computed: no layer of any exporter
    old = node.outputs[0]
    product = ir.node("Gemm", list(node.inputs[:2]), dict(node.attributes), name=node.name)
    product.outputs[0].name = f"{old.name}_product"
    product.outputs[0].type, product.outputs[0].shape = old.type, old.shape
    added = ir.node("Add", [product.outputs[0], addend], name=f"{node.name}_Add")
    replace(model, node, [product, added])


def fold_affine(model: ir.Model) -> None:
    """Fold per-channel scales and shifts behind a linear op into its weight and bias."""
    for node in list(model.graph):
        if node.op_type not in _LINEAR or node.attributes.get_float("alpha", 1.0) != 1.0:
            continue
        while (follower := _affine_behind(model, node)) is not None:
            _fold(model, node, *follower)


def _affine_behind(model: ir.Model, node: ir.Node) -> tuple[ir.Node, np.ndarray] | None:
    """The only reader of a linear op, where it scales or shifts each channel by a constant; and these."""
    result = node.outputs[0]
    uses = list(result.uses())
    if len(uses) != 1 or result.is_graph_output():
        return None
    reader, position = uses[0]
    if reader.op_type not in _AFFINE or len(reader.inputs) != 2 or reader.graph is not model.graph:
        return None
    if position == 1 and reader.op_type in ("Sub", "Div"):
        return None
    per_channel = _per_channel(node, array_of(reader.inputs[1 - position]))
    if per_channel is None or not _has_constants(node) or (reader.op_type == "Div" and not per_channel.all()):
        return None
    return reader, per_channel


def _has_constants(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    known = bias is None or (array_of(bias) is not None and array_of(bias).shape == (_channels(node),))  # type: ignore[union-attr]
    return array_of(node.inputs[1]) is not None and known and node.attributes.get_float("beta", 1.0) == 1.0


def _per_channel(node: ir.Node, operand: np.ndarray | None) -> np.ndarray | None:
    """One number a channel, float64, of a constant that broadcasts over everything else; else None."""
    if operand is None or operand.dtype != np.float32 or not np.isfinite(operand).all():
        return None
    channels = _channels(node)
    if operand.size == 1 and operand.ndim <= _rank(node):
        return np.full(channels, operand.reshape(()), np.float64)
    axis = operand.ndim - 1 if node.op_type == "Gemm" else operand.ndim - (_rank(node) - 1)
    alone = 0 <= axis < operand.ndim and operand.size == channels == operand.shape[axis]
    return operand.reshape(-1).astype(np.float64) if alone and operand.ndim <= _rank(node) else None


def _rank(node: ir.Node) -> int:
    weight = array_of(node.inputs[1])
    return 0 if weight is None else weight.ndim


def _channels(node: ir.Node) -> int:
    """Output channels of a linear op with a constant weight; -1 where the weight is computed."""
    weight = array_of(node.inputs[1])
    if weight is None:
        return -1
    if node.op_type == "ConvTranspose":
        return weight.shape[1] * node.attributes.get_int("group", 1)
    if node.op_type == "Gemm":
        return weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
    return weight.shape[0]


def _fold(model: ir.Model, node: ir.Node, follower: ir.Node, operand: np.ndarray) -> None:
    """Fold one scale or shift: y = a (W x + b) + c is (a W) x + (a b + c)."""
    result = node.outputs[0]
    weight, bias = array_of(node.inputs[1]), array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    assert weight is not None
    name = str(follower.outputs[0].name)
    shift = np.zeros(_channels(node)) if bias is None else bias.astype(np.float64)
    if follower.op_type in ("Mul", "Div"):
        factor = operand if follower.op_type == "Mul" else 1 / operand
        node.replace_input_with(
            1, new_constant(model, f"{name}_weight", weight * _beside(node, weight, factor))
        )
        shift *= factor
    else:
        shift += operand if follower.op_type == "Add" else -operand
    if follower.op_type in ("Add", "Sub") or bias is not None:
        node.resize_inputs(3)
        node.replace_input_with(2, new_constant(model, f"{name}_bias", shift))
    old = follower.outputs[0]
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    model.graph.remove(follower, safe=True)
    result.name, result.shape, result.type = old.name, old.shape, old.type


def _beside(node: ir.Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Factors of output channels, shaped to multiply the weight."""
    if node.op_type == "Gemm":
        return factor.reshape((-1, 1) if node.attributes.get_int("transB", 0) else (1, -1))
    if node.op_type == "Conv":
        return factor.reshape(-1, *(1,) * (weight.ndim - 1))
    groups = node.attributes.get_int("group", 1)  # ConvTranspose: (inputs, outputs of a group, ...)
    rows = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return rows.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2))


def replace(model: ir.Model, node: ir.Node, made: list[ir.Node]) -> None:
    """Put nodes in the place of one; the last makes its result, under its name."""
    old, new = node.outputs[0], made[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], made, [old], [new])
