"""Scales of a matrix's columns beside a Reshape: tokens that were made rows, and rows that become tokens again.

LeViT and its kin write a linear layer over tokens as product, Reshape to rows, BatchNormalization, Reshape
back. OpenVINO 2026.4 computes something else from any INT8 file that multiplies the columns of a matrix by
different numbers right before a Reshape to three axes of open size (it takes the product for a dequantization
and pulls it through the Reshape; 1 dB instead of 40). So such a scale goes into the layer before it, across
Reshapes that keep the last axis, or behind the Reshape; and so does a layer without bias, for the engine itself
would scale its result there.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantrim.graph.addends import replace
from quantrim.graph.constants import array_of, free_name, names_of, new_constant

_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})


def column_scales(model: ir.Model) -> None:
    """Bring scales and shifts of columns into linear layers, or behind the Reshape that follows them."""
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and _rank(node.inputs[0]) == 2:
            _write_out(model, node)
    for node in list(model.graph):
        if node.op_type in ("Gemm", "MatMul") and _columns(node) is not None:
            while (follower := _follower(node)) is not None:
                _fold(model, node, *follower)
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.graph is model.graph:
            _scale_behind(model, node)
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.graph is model.graph:
            _layer_behind(model, node)


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None or value.shape is None else len(value.shape)


def _columns(node: ir.Node) -> int | None:
    """Columns that a product with a constant matrix gives."""
    weight = array_of(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    return int(weight.shape[0 if node.attributes.get_int("transB", 0) else 1])


def _write_out(model: ir.Model, node: ir.Node) -> None:
    """A BatchNormalization of rows as product and sum."""
    statistics = [array_of(value) for value in node.inputs[1:5]]
    if any(array is None for array in statistics):
        return
    gamma, beta, mean, variance = (a.astype(np.float64) for a in statistics if a is not None)
    factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    name = str(node.outputs[0].name)
    scaled = ir.node("Mul", [node.inputs[0], new_constant(model, f"{name}_factor", factor)], name=f"{name}_Mul")
    product = scaled.outputs[0]
    product.name = free_name(f"{name}_scaled", names_of(model))
    product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
    shift = new_constant(model, f"{name}_shift", beta - mean * factor)
    replace(model, node, [scaled, ir.node("Add", [product, shift], name=node.name)])


def _sole_reader(value: ir.Value) -> tuple[ir.Node, int] | None:
    uses = list(value.uses())
    return uses[0] if len(uses) == 1 and not value.is_graph_output() else None


def _vector(value: ir.Value | None, columns: int) -> np.ndarray | None:
    """A constant of one number a column, float64."""
    array = array_of(value)
    if array is None or array.dtype != np.float32 or array.size != columns or array.shape[-1:] != (columns,):
        return None
    return array.reshape(-1).astype(np.float64)


def _affine(reader: ir.Node, position: int, columns: int) -> np.ndarray | None:
    """The constants by which a node scales or shifts columns; None where it does something else."""
    if reader.op_type not in _AFFINE or (position == 1 and reader.op_type in ("Sub", "Div")):
        return None
    vector = _vector(reader.inputs[1 - position], columns)
    return None if vector is None or (reader.op_type == "Div" and not vector.all()) else vector


def _own_sum(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add of a vector behind a MatMul, which is its bias, and the position of the vector."""
    found = _sole_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    if found is None or found[0].op_type != "Add":
        return None
    vector = _vector(found[0].inputs[1 - found[1]], _columns(node) or 0)
    return None if vector is None else (found[0], 1 - found[1])


def _follower(node: ir.Node) -> tuple[ir.Node, np.ndarray] | None:
    """What scales or shifts a layer's columns behind Reshapes that keep them; and its constants."""
    columns = _columns(node) or 0
    own = _own_sum(node)
    value = node.outputs[0] if own is None else own[0].outputs[0]
    crossed = False
    while (found := _sole_reader(value)) is not None:
        reader, position = found
        if reader.op_type == "Reshape" and position == 0 and _keeps_columns(reader, columns):
            value, crossed = reader.outputs[0], True
            continue
        vector = _affine(reader, position, columns) if crossed and _known_bias(node) else None
        return None if vector is None else (reader, vector)
    return None


def _known_bias(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
    return plain and (bias is None or _vector(bias, _columns(node) or 0) is not None)


def _keeps_columns(reshape: ir.Node, columns: int) -> bool:
    """Whether a Reshape leaves the last axis, of so many columns, as it is."""
    shape = array_of(reshape.inputs[1])
    if shape is not None:
        return shape.size > 0 and int(shape.reshape(-1)[-1]) == columns
    result = reshape.outputs[0].shape
    return result is not None and len(result) > 0 and result[-1] == columns


def _fold(model: ir.Model, node: ir.Node, follower: ir.Node, vector: np.ndarray) -> None:
    name, own = str(follower.outputs[0].name), _own_sum(node)
    weight = array_of(node.inputs[1])
    assert weight is not None
    holder, position = own or (node, 2)
    bias = array_of(holder.inputs[position]) if len(holder.inputs) > position else None
    shift = np.zeros(len(vector)) if bias is None else bias.reshape(-1).astype(np.float64)
    if follower.op_type in ("Mul", "Div"):
        factor = vector if follower.op_type == "Mul" else 1 / vector
        across = factor[:, None] if node.attributes.get_int("transB", 0) else factor
        node.replace_input_with(1, new_constant(model, f"{name}_weight", weight * across))
        shift = shift * factor
    else:
        shift = shift + (vector if follower.op_type == "Add" else -vector)
    if bias is not None or follower.op_type in ("Add", "Sub"):
        _set_bias(model, node, new_constant(model, f"{name}_bias", shift))
    source = next(v for v in follower.inputs if v is not None and array_of(v) is None)
    old = follower.outputs[0]
    ir.convenience.replace_all_uses_with(old, source, replace_graph_outputs=True)
    model.graph.remove(follower, safe=True)
    if source.is_graph_output():
        source.name, source.shape, source.type = old.name, old.shape, old.type


def _set_bias(model: ir.Model, node: ir.Node, bias: ir.Value) -> None:
    own = _own_sum(node)
    if own is not None:
        own[0].replace_input_with(own[1], bias)
    elif node.op_type == "Gemm":
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
    else:
        product = node.outputs[0]
        added = ir.node("Add", [product, bias], name=f"{node.name or product.name}_Add")
        added.outputs[0].name = free_name(f"{product.name}_biased", names_of(model))
        added.outputs[0].type, added.outputs[0].shape = product.type, product.shape
        ir.convenience.replace_all_uses_with(product, added.outputs[0], replace_graph_outputs=True)
        added.replace_input_with(0, product)
        model.graph.insert_after(node, added)


def _scale_behind(model: ir.Model, reshape: ir.Node) -> None:
    """Reshape first, then scale, where the columns of a matrix are scaled right before."""
    scale = reshape.inputs[0].producer() if reshape.inputs[0] is not None else None
    if scale is None or not _is_scale(scale) or _rank(scale.outputs[0]) != 2:
        return
    position = next((p for p, v in enumerate(scale.inputs) if array_of(v) is None), None)
    alone = _sole_reader(scale.outputs[0]) is not None
    if position is None or not alone or len(list(scale.inputs)) != 2:
        return
    constant = scale.inputs[1 - position]
    array = array_of(constant)
    vector = None if array is None else _affine(scale, position, array.size)
    if array is None or array.size < 2 or vector is None or not _keeps_columns(reshape, array.size):
        return
    first = ir.node(
        "Reshape", [scale.inputs[position], reshape.inputs[1]], reshape.attributes, name=reshape.name
    )
    shaped = first.outputs[0]
    shaped.name = free_name(f"{reshape.outputs[0].name}_unscaled", names_of(model))
    shaped.type, shaped.shape = reshape.outputs[0].type, reshape.outputs[0].shape
    operands = [shaped, constant] if position == 0 else [constant, shaped]
    replace(model, reshape, [first, ir.node(scale.op_type, operands, name=scale.name)])
    model.graph.remove(scale, safe=True)
    _scale_behind(model, first)


def _is_scale(node: ir.Node) -> bool:
    """Whether a node scales, or shifts what was scaled by the node before it."""
    if node.op_type in ("Mul", "Div"):
        return True
    makers = [v.producer() for v in node.inputs if v is not None]
    return node.op_type in ("Add", "Sub") and any(m is not None and m.op_type in ("Mul", "Div") for m in makers)


def _layer_behind(model: ir.Model, reshape: ir.Node) -> None:
    """Reshape the rows first, then multiply, where a product without bias goes right into a Reshape."""
    layer = reshape.inputs[0].producer() if reshape.inputs[0] is not None else None
    shape = array_of(reshape.inputs[1])
    if layer is None or shape is None or not _is_bare_product(layer) or (shape == 0).any():
        return
    weight, columns = array_of(layer.inputs[1]), _columns(layer)
    if weight is None or columns is None or shape[-1] != columns or _sole_reader(layer.outputs[0]) is None:
        return
    inner = weight.size // columns
    name = str(layer.outputs[0].name)
    target = new_constant(model, f"{name}_shape", np.array([*shape[:-1], inner], np.int64))
    rows = ir.node("Reshape", [layer.inputs[0], target], name=f"{layer.name or name}_rows")
    rows.outputs[0].name = free_name(f"{name}_rows", names_of(model))
    rows.outputs[0].type = layer.outputs[0].type
    kept = layer.inputs[1]
    if layer.attributes.get_int("transB", 0):
        kept = new_constant(model, f"{name}_weight", weight.T)
    replace(model, reshape, [rows, ir.node("MatMul", [rows.outputs[0], kept], name=layer.name)])
    model.graph.remove(layer, safe=True)


def _is_bare_product(node: ir.Node) -> bool:
    """Whether a node multiplies rows with a constant matrix and adds nothing."""
    if node.op_type not in ("Gemm", "MatMul") or _rank(node.inputs[0]) != 2 or _columns(node) is None:
        return False
    bias = array_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
    plain = node.attributes.get_float("alpha", 1.0) == 1.0 and not node.attributes.get_int("transA", 0)
    return plain and bias is not None and not bias.any()
