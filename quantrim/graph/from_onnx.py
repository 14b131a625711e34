"""Graph view of a normalised ONNX model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from quantrim.graph.bodies import captured, subgraphs
from quantrim.graph.core import selections
from quantrim.graph.names import module_of
from quantrim.graph.ops import OF_ONNX
from quantrim.graph.ports import Feed
from quantrim.graph.session import reference_session, with_outputs
from quantrim.graph.view import Graph, Node, Weight

#: Key of a node's metadata: why no quantizer may touch it. Its constants are arithmetic, not trained weights.
KEEP_FLOAT = "quantrim.keep_float"


def graph_from_onnx(model: ir.Model, feed: Feed) -> Graph:
    """Graph view of a model, with the tensor shapes that one real run shows.

    Args:
        model: normalised model; its node names are unique.
        feed: one input for every graph input (batch 1 is enough).

    Raises:
        ModelError: ONNX Runtime can't load the model.
    """
    constants = set(model.graph.initializers)
    behind = selections(model)
    nodes = tuple(_node(node, constants, behind) for node in model.graph)
    return Graph(
        nodes=nodes,
        inputs=tuple(str(v.name) for v in model.graph.inputs if v.name not in constants),
        outputs=tuple(str(v.name) for v in model.graph.outputs),
        shapes=observed_shapes(model, feed),
    )


def observed_shapes(model: ir.Model, feed: Feed) -> dict[str, tuple[int, ...]]:
    """Shape of every floating tensor in one run; exact where symbolic inference gives up."""
    floats = [
        str(value.name)
        for node in model.graph
        for value in node.outputs
        if value.name and value.dtype in (ir.DataType.FLOAT, None) and _is_tensor(value, node)
    ]
    session = reference_session(_returning_shapes(model, floats))
    found = session.run([_shape_name(name) for name in floats], dict(feed)) if floats else []
    shapes = {name: tuple(array.shape) for name, array in feed.items()}
    return shapes | {name: tuple(map(int, shape)) for name, shape in zip(floats, found, strict=True)}


def _is_tensor(value: ir.Value, node: ir.Node) -> bool:
    if value.type is not None:
        return isinstance(value.type, ir.TensorType)
    return not node.op_type.startswith(("Sequence", "SplitToSequence", "Optional")) and not subgraphs(node)


def _returning_shapes(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Copy of a model that returns the shapes of tensors, so that none of them outlives its last use."""
    copy = with_outputs(model, ())
    values = {value.name: value for node in copy.graph for value in node.outputs}
    for name in names:
        shape = ir.node("Shape", [values[name]], name=_shape_name(name))
        shape.outputs[0].name = _shape_name(name)
        shape.outputs[0].dtype = ir.DataType.INT64
        copy.graph.append(shape)
        copy.graph.outputs.append(shape.outputs[0])
    return copy


def _shape_name(name: str) -> str:
    return f"{name}__shape"


def _node(node: ir.Node, constants: Collection[str | None], behind: Mapping[str, str]) -> Node:
    operands = [None if value is None else str(value.name) for value in node.inputs]
    op = OF_ONNX.get(node.op_type, "other") if node.domain in ("", "ai.onnx") else "other"
    weight, bias = None, None
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        op, weight, bias = _linear_operands(node, op, operands, constants)
    fixed = {weight.name} if weight else set()
    fixed |= {bias} if bias else set()
    read = dict.fromkeys([*operands, *captured(node)])
    inputs = tuple(name for name in read if name and name not in constants and name not in fixed)
    return Node(
        name=str(node.name),
        op=op,
        kind=node.op_type,
        inputs=inputs,
        outputs=tuple(str(value.name) for value in node.outputs if value.name),
        weight=weight,
        bias=bias,
        attributes=_attributes(node, op, operands, constants) | _kept_float(node, operands, bias, behind),
        module=module_of(node),
    )


def _linear_operands(
    node: ir.Node, op: str, operands: Sequence[str | None], constants: Collection[str | None]
) -> tuple[str, Weight | None, str | None]:
    """Canonical op, weight and bias of a node that multiplies by its second operand.

    ``Gemm(alpha != 1)`` or ``transA`` stay "matmul" without weight: no exporter writes them for layers.
    """
    product = "matmul" if node.op_type in ("Gemm", "MatMul") else op
    if len(operands) < 2 or operands[1] not in constants:
        return product, None, None
    shape = tuple(node.inputs[1].const_value.numpy().shape)  # type: ignore[union-attr]
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1.0:
            return "other", None, None
        axis = 0 if node.attributes.get_int("transB", 0) else 1
    elif node.op_type == "MatMul":
        axis = len(shape) - 1
        if len(shape) != 2:
            return "matmul", None, None
    else:
        axis = 1 if node.op_type == "ConvTranspose" else 0
    bias = operands[2] if len(operands) > 2 and operands[2] in constants else None
    op = "linear" if product == "matmul" else op
    return op, Weight(name=str(operands[1]), axis=axis, shape=shape), bias


def _attributes(
    node: ir.Node, op: str, operands: Sequence[str | None], constants: Collection[str | None]
) -> dict[str, Any]:
    """What placement asks of a node: group, transB, bounds of a clip, constant operands, mode."""
    found: dict[str, Any] = {}
    for key in ("group", "transB", "axis", "mode", "approximate", "equation"):
        if key in node.attributes:
            value = node.attributes[key].value
            found[key] = value.decode() if isinstance(value, bytes) else value
    if op == "clip":
        found["low"], found["high"] = (_scalar(node, position) for position in (1, 2))
    if op in ("add", "mul", "sub", "div", "concat") and any(name in constants for name in operands):
        found["constant_operand"] = True
    return found


def _kept_float(
    node: ir.Node, operands: Sequence[str | None], bias: str | None, behind: Mapping[str, str]
) -> dict[str, Any]:
    """Why a node stays float whatever the target: said by its maker, a selection before it, a computed bias."""
    if KEEP_FLOAT in node.metadata_props:
        return {"keep_float": node.metadata_props[KEEP_FLOAT]}
    if node.outputs and str(node.outputs[0].name) in behind:
        selects = behind[str(node.outputs[0].name)]
        return {"keep_float": f"stands behind a selection by value ({selects})"}
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(operands) > 2 and operands[2] and bias is None:
        return {"keep_float": "bias is not a constant"}
    return {}


def _scalar(node: ir.Node, position: int) -> float | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None or value.const_value is None:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def constant(model: ir.Model, name: str) -> np.ndarray:
    """Value of an initializer as a numpy array (read-only)."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None, name
    return tensor.numpy()
