"""Element types that quantization can start from: float32, or 16-bit floats behind float32 inputs.

The usual converters (``keep_io_types``) leave the ends of a file in float32 and put 16-bit floats inside.
Such a body is widened: the same weights, as float32, computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from quantrim.errors import ModelError

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: Operators whose constants are trained.
WEIGHTED = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Operators of files that some quantizer wrote.
_QUANTIZED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinear",
    "QGemm", "QAttention", "MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "FakeQuant",
)  # fmt: skip
#: Attributes that name an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype"})


def require_float(model: ir.Model) -> None:
    """Refuse a model that quantization can't start from.

    Raises:
        ModelError: it is quantized already, its inputs are 16-bit floats, or nothing in it is float.
    """
    for node in model.graph.all_nodes():
        if node.op_type.startswith(_QUANTIZED):
            raise ModelError(
                f"the model is quantized already (node {node.name!r} is a {node.op_type}). Give the float "
                "model that it was made from."
            )
    halves = [v.name for v in model.graph.inputs if v.dtype in HALVES]
    if halves:
        raise ModelError(
            f"input {halves[0]!r} is 16-bit float; quantrim starts from float32. Export the float32 model."
        )
    floats = any(v.dtype == ir.DataType.FLOAT for v in model.graph.inputs)
    if not floats and not any(node.op_type in WEIGHTED for node in model.graph):
        described = ", ".join(f"{v.name!r} ({v.dtype})" for v in model.graph.inputs) or "none"
        raise ModelError(f"no float32 input (inputs: {described}); quantrim quantizes float32 vision models.")


def holds_halves(model: ir.Model) -> bool:
    """Whether weights or constants of a model are 16-bit floats."""
    return any(tensor.dtype in HALVES for tensor in _constants(model))


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in _graphs(model):
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            yield from (a.as_tensor() for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def widen_halves(model: ir.Model) -> None:
    """Turn every 16-bit float of a model into float32, in place; outputs keep their types."""
    outputs = [value.dtype for value in model.graph.outputs]
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in HALVES:
                value.const_value = _widened(value.const_value)
        for value in _values(graph):
            if value.dtype in HALVES:
                value.type = ir.TensorType(ir.DataType.FLOAT)  # a clone shares the old one with its model
        for node in graph:
            _widen_attributes(node)
    for position, dtype in enumerate(outputs):
        if dtype in HALVES:
            _cast_output(model, position, dtype)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        elif name in _TYPE_ATTRIBUTES and attribute.value in HALVES:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _cast_output(model: ir.Model, position: int, dtype: ir.DataType) -> None:
    """Let a graph output keep its 16-bit type, by a Cast that takes over its name."""
    value = model.graph.outputs[position]
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_Cast")
    result = cast.outputs[0]
    name, value.name = value.name, f"{value.name}_float32"
    result.name, result.shape, result.type = name, value.shape, ir.TensorType(dtype)
    model.graph.append(cast)
    model.graph.outputs[position] = result
