"""Write a plan into a model: QuantizeLinear/DequantizeLinear pairs and int8 constants.

The form is the one every engine reads (ONNX opset 13 and up): an activation passes Q → DQ; a weight is
stored as int8 and passes DQ alone; a bias is stored as int32 with scale ``s_activation * s_weight``.
Names and dynamic axes of inputs and outputs stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer

from quantrim.graph.from_onnx import subgraphs
from quantrim.placement.plan import Plan, WeightQuantization
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import ActivationScale, Float32, quantize_bias


def write_qdq(
    model: ir.Model,
    plan: Plan,
    activations: Mapping[str, ActivationScale],
    weights: Mapping[str, WeightCodes],
    *,
    int32_bias: bool = True,
) -> ir.Model:
    """Quantized copy of a model.

    Args:
        model: normalised float model that the plan was made for.
        plan: where quantizers stand.
        activations: scale of every tensor of ``plan.groups``.
        weights: codes of every node of ``plan.weights``.
        int32_bias: store biases as int32; else leave them float.
    """
    model = model.clone()
    values = {str(v.name): v for v in model.graph.inputs}
    values |= {str(v.name): v for node in model.graph for v in node.outputs if v.name}
    nodes = {str(node.name): node for node in model.graph}
    owners = {inner: str(node.name) for node in model.graph for inner in _with_bodies(node)}
    for tensor in plan.groups:
        _quantize_activation(model, plan, values[tensor], activations[tensor], owners)
    for name, quantizer in plan.weights.items():
        _quantize_constant(model, nodes[name], quantizer, weights[name])
        if int32_bias:
            source = activations[quantizer.source].scale
            _store_bias(model, nodes[name], quantizer, weights[name], source)
    onnxscript.optimizer.remove_unused_nodes(model)
    model.graph.sort()
    return model


def _with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """The node and, for control flow, every node inside it."""
    yield node
    for body in subgraphs(node):
        for inner in body:
            yield from _with_bodies(inner)


def _quantize_activation(
    model: ir.Model,
    plan: Plan,
    value: ir.Value,
    scale: ActivationScale,
    owners: Mapping[ir.Node, str],
) -> None:
    name = str(value.name)
    readers = [(node, position) for node, position in value.uses() if (owners.get(node), name) in plan.reads]
    if not readers and name not in plan.outputs:  # its values are codes already, or nobody reads it
        return
    dtype = np.int8 if scale.signed else np.uint8
    operands = [
        _initializer(model, f"{name}_scale", np.array(scale.scale, np.float32)),
        _initializer(model, f"{name}_zero_point", np.array(scale.zero_point, dtype)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *operands], name=f"{name}_QuantizeLinear")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *operands], name=f"{name}_DequantizeLinear")
    quantize.outputs[0].name = f"{name}_quantized"
    real = dequantize.outputs[0]
    real.name, real.shape, real.type = f"{name}_dequantized", value.shape, value.type
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [quantize, dequantize])
    else:
        model.graph.insert_after(producer, [quantize, dequantize])
    for node, position in readers:
        node.replace_input_with(position, real)
    if name in plan.outputs:
        _return_instead(model, value, real)


def _return_instead(model: ir.Model, value: ir.Value, real: ir.Value) -> None:
    """Let the graph return the dequantized tensor under the name of the float one."""
    name = str(value.name)
    for position, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[position] = real
    value.name, real.name = f"{name}_float", name


def _quantize_constant(
    model: ir.Model, node: ir.Node, quantizer: WeightQuantization, codes: WeightCodes
) -> None:
    real = _dequantized(model, f"{quantizer.tensor}@{node.name}", codes.codes, codes.scales, codes.axis, node)
    node.replace_input_with(1, real)


def _store_bias(
    model: ir.Model,
    node: ir.Node,
    quantizer: WeightQuantization,
    codes: WeightCodes,
    source_scale: float,
) -> None:
    bias = codes.bias
    if bias is None and quantizer.bias is not None:
        bias = model.graph.initializers[quantizer.bias].const_value.numpy()  # type: ignore[union-attr]
    if bias is None or node.op_type == "MatMul":
        return
    integers = quantize_bias(bias, codes.scales, source_scale)
    scales = (np.float64(source_scale) * codes.scales.astype(np.float64)).astype(np.float32)
    axis = 0 if codes.scales.size > 1 else None
    real = _dequantized(model, f"{quantizer.bias or node.name}@{node.name}.bias", integers, scales, axis, node)
    if len(node.inputs) > 2:
        node.replace_input_with(2, real)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, real)


def _dequantized(
    model: ir.Model,
    name: str,
    codes: np.ndarray,
    scales: Float32,
    axis: int | None,
    reader: ir.Node,
) -> ir.Value:
    """Value of integers stored in the file, behind a DequantizeLinear just before their reader."""
    per_channel = axis is not None and scales.size > 1
    shaped = scales if per_channel else scales.reshape(())
    operands = [
        _initializer(model, f"{name}_quantized", codes),
        _initializer(model, f"{name}_scale", shaped),
        _initializer(model, f"{name}_zero_point", np.zeros(shaped.shape, codes.dtype)),
    ]
    attributes = {"axis": axis} if per_channel else {}
    node = ir.node("DequantizeLinear", operands, attributes, name=f"{name}_DequantizeLinear")
    node.outputs[0].name = f"{name}_dequantized"
    node.outputs[0].shape = ir.Shape(codes.shape)
    node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(reader, node)
    return node.outputs[0]


def _initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
