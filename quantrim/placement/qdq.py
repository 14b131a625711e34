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

from quantrim.graph.bodies import subgraphs
from quantrim.graph.constants import free_name, names_of
from quantrim.placement.plan import Plan, WeightQuantization
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import ActivationScale, Float32, of_every_channel, quantize_bias


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
    return _Writer(model.clone(), plan, activations, weights, int32_bias).written()


class _Writer:
    """A copy of the model that quantizers are put into; names that it makes give way to the model's own."""

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        activations: Mapping[str, ActivationScale],
        weights: Mapping[str, WeightCodes],
        int32_bias: bool,
    ) -> None:
        self.model, self.plan, self.activations = model, plan, activations
        self.weights, self.int32_bias = weights, int32_bias
        self.taken = names_of(model)
        self.nodes = {str(node.name): node for node in model.graph}
        self.owners = {inner: str(node.name) for node in model.graph for inner in _with_bodies(node)}
        self.stored: dict[tuple[str, bytes], ir.Value] = {}

    def written(self) -> ir.Model:
        """The model with every quantizer of the plan."""
        model = self.model
        values = {str(v.name): v for v in model.graph.inputs}
        values |= {str(v.name): v for node in model.graph for v in node.outputs if v.name}
        for tensor in self.plan.groups:
            self._quantize_activation(values[tensor], self.activations[tensor])
        for name, quantizer in self.plan.weights.items():
            self._quantize_constant(self.nodes[name], quantizer, self.weights[name])
            if self.int32_bias:
                self._store_bias(self.nodes[name], quantizer, self.weights[name])
        onnxscript.optimizer.remove_unused_nodes(model)
        model.graph.sort()
        return model

    def _name(self, name: str) -> str:
        free = free_name(name, self.taken)
        self.taken.add(free)
        return free

    def _quantize_activation(self, value: ir.Value, scale: ActivationScale) -> None:
        plan, name = self.plan, str(value.name)
        readers = [(n, position) for n, position in value.uses() if (self.owners.get(n), name) in plan.reads]
        if not readers and name not in plan.outputs:  # its values are codes already, or nobody reads it
            return
        dtype = np.int8 if scale.signed else np.uint8
        operands = [
            self._initializer(f"{name}_scale", np.array(scale.scale, np.float32)),
            self._initializer(f"{name}_zero_point", np.array(scale.zero_point, dtype)),
        ]
        quantize = ir.node("QuantizeLinear", [value, *operands], name=self._name(f"{name}_QuantizeLinear"))
        quantize.outputs[0].name = self._name(f"{name}_quantized")
        dequantize = ir.node(
            "DequantizeLinear",
            [quantize.outputs[0], *operands],
            name=self._name(f"{name}_DequantizeLinear"),
        )
        real = dequantize.outputs[0]
        real.name, real.shape, real.type = self._name(f"{name}_dequantized"), value.shape, value.type
        producer = value.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], [quantize, dequantize])
        else:
            self.model.graph.insert_after(producer, [quantize, dequantize])
        for node, position in readers:
            node.replace_input_with(position, real)
        if name in plan.outputs:
            self._return_instead(value, real)

    def _return_instead(self, value: ir.Value, real: ir.Value) -> None:
        """Let the graph return the dequantized tensor under the name of the float one."""
        name = str(value.name)
        for position, output in enumerate(self.model.graph.outputs):
            if output is value:
                self.model.graph.outputs[position] = real
        value.name, real.name = self._name(f"{name}_float"), name

    def _quantize_constant(self, node: ir.Node, quantizer: WeightQuantization, codes: WeightCodes) -> None:
        real = self._dequantized(quantizer.tensor, codes.codes, codes.scales, codes.axis, node)
        node.replace_input_with(1, real)

    def _store_bias(self, node: ir.Node, quantizer: WeightQuantization, codes: WeightCodes) -> None:
        source_scale = self.activations[quantizer.source].scale
        bias = codes.bias
        if bias is None and quantizer.bias is not None:
            bias = self.model.graph.initializers[quantizer.bias].const_value.numpy()  # type: ignore[union-attr]
        if bias is None or node.op_type == "MatMul":
            return
        scales = of_every_channel(codes.scales, bias.size)
        integers = quantize_bias(bias, scales, source_scale)
        scales = (np.float64(source_scale) * scales.astype(np.float64)).astype(np.float32)
        axis = 0 if scales.size > 1 else None
        name = f"{quantizer.bias or node.name}@{node.name}.bias"
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, self._dequantized(name, integers, scales, axis, node))

    def _dequantized(
        self, name: str, codes: np.ndarray, scales: Float32, axis: int | None, reader: ir.Node
    ) -> ir.Value:
        """Value of integers stored in the file, behind a DequantizeLinear just before their reader.

        Layers that share a weight share its codes; each has a DequantizeLinear of its own, as engines look for.
        """
        per_channel = axis is not None and scales.size > 1
        shaped = scales if per_channel else scales.reshape(())
        operands = [
            self._shared(f"{name}_quantized", codes),
            self._shared(f"{name}_scale", shaped),
            self._shared(f"{name}_zero_point", np.zeros(shaped.shape, codes.dtype)),
        ]
        attributes = {"axis": axis} if per_channel else {}
        node = ir.node("DequantizeLinear", operands, attributes, name=self._name(f"{name}_DequantizeLinear"))
        node.outputs[0].name = self._name(f"{name}_dequantized")
        node.outputs[0].shape = ir.Shape(codes.shape)
        node.outputs[0].dtype = ir.DataType.FLOAT
        self.model.graph.insert_before(reader, node)
        return node.outputs[0]

    def _shared(self, name: str, array: np.ndarray) -> ir.Value:
        key = (name, array.tobytes())
        if key not in self.stored:
            self.stored[key] = self._initializer(name, array)
        return self.stored[key]

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=self._name(name))
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return value


def _with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """The node and, for control flow, every node inside it."""
    yield node
    for body in subgraphs(node):
        for inner in body:
            yield from _with_bodies(inner)
