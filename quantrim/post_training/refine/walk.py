"""Walk a model node by node, float and quantized side by side.

At every linear layer a correction sees the input that the INT8 kernel will read, which carries the errors
of all quantized layers before it, and the output that the float model gives. Each node is run once, so a
walk costs two forward passes of the samples it is given, whatever the number of layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from quantrim.graph.from_onnx import captured
from quantrim.graph.segments import part_session
from quantrim.graph.view import Graph, Node
from quantrim.placement.plan import Plan
from quantrim.ranges import ActivationScale
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import shape_scales

#: Bytes of input samples that a walk holds at most; its live tensors are a few times that.
_INPUT_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class Step:
    """One linear layer of a walk.

    Attributes:
        node: graph view of the layer.
        operator: the ONNX node, with its attributes.
        x: input as the INT8 kernel reads it, float32.
        y: output of the float model, float32.
        weight: float32 weight.
        bias: float32 bias or None.
        codes: current codes of the weight.
        run: the layer's function of (input, weight, bias).
    """

    node: Node
    operator: ir.Node
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    codes: WeightCodes
    run: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]


Correct = Callable[[Step], WeightCodes]


def walk(
    model: ir.Model,
    graph: Graph,
    plan: Plan,
    activations: Mapping[str, ActivationScale],
    weights: Mapping[str, WeightCodes],
    feeds: Sequence[Mapping[str, np.ndarray]],
    correct: Correct,
) -> dict[str, WeightCodes]:
    """Codes after ``correct`` has seen every quantized linear layer, in topological order.

    Args:
        model: normalised float model.
        graph: its view.
        plan: where quantizers stand.
        activations: scales by tensor.
        weights: codes by node, as they are now.
        feeds: calibration batches; as many are used as fit the memory budget.
        correct: gives the new codes of a layer.
    """
    walker = _Walker(model, graph, plan, activations, _affordable(feeds))
    corrected = dict(weights)
    for operator in model.graph:
        node = graph.by_name[str(operator.name)]
        if node.name in corrected and node.weight is not None:
            corrected[node.name] = walker.linear(operator, node, corrected[node.name], correct)
        else:
            walker.plain(operator, node)
    return corrected


def _affordable(feeds: Sequence[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """As many batches as the budget allows, all of the first one's shape but for the batch axis."""
    first = feeds[0]
    shapes = {name: array.shape[1:] for name, array in first.items()}
    same = [f for f in feeds if all(f[name].shape[1:] == shape for name, shape in shapes.items())]
    per_batch = max(1, sum(array.nbytes for array in first.values()))
    return same[: max(1, _INPUT_BYTES // per_batch)]


Batches = list[np.ndarray]


class _Walker:
    """Values of both walks, one array a batch, dropped as soon as nobody needs them.

    Batches stay apart because a model with a fixed batch can't run them together; a linear layer can, so
    corrections see one array.
    """

    def __init__(
        self,
        model: ir.Model,
        graph: Graph,
        plan: Plan,
        activations: Mapping[str, ActivationScale],
        feeds: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        self.model, self.graph, self.plan, self.activations = model, graph, plan, activations
        self.float_values: dict[str, Batches] = {name: [feed[name] for feed in feeds] for name in feeds[0]}
        self.int8_values: dict[str, Batches] = dict(self.float_values)
        self.readers = Counter(tensor for node in graph.nodes for tensor in node.inputs)

    def plain(self, operator: ir.Node, node: Node) -> None:
        """Run any node that has no quantized weight."""
        session, names = _session(self.model, operator, ())
        for values, quantized in ((self.float_values, False), (self.int8_values, True)):
            read = {name: self._read(node, name, values, quantized) for name in names}
            outputs = [str(value.name) for value in operator.outputs if value.name]
            count = len(next(iter(read.values()), next(iter(values.values()))))
            made = [session.run(outputs, {name: read[name][i] for name in names}) for i in range(count)]
            values.update({name: [batch[k] for batch in made] for k, name in enumerate(outputs)})
        self._release(node)

    def linear(self, operator: ir.Node, node: Node, codes: WeightCodes, correct: Correct) -> WeightCodes:
        """Run a quantized layer and let ``correct`` change its codes."""
        assert node.weight is not None
        free = tuple(str(value.name) for value in operator.inputs[1:3] if value is not None)
        session, _ = _session(self.model, operator, free, with_bias=True)
        bias_name = free[1] if len(free) > 1 else "__bias"

        def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
            feed = {node.inputs[0]: x, node.weight.name: weight}  # type: ignore[union-attr]
            if operator.op_type != "MatMul":
                feed[bias_name] = np.zeros(_channels(operator, weight), np.float32) if bias is None else bias
            return session.run([node.output], feed)[0]

        weight = self._constant(node.weight.name)
        bias = self._constant(node.bias) if node.bias else None
        batches = self._read(node, node.inputs[0], self.int8_values, quantized=True)
        x = np.concatenate(batches)
        y = run(np.concatenate(self.float_values[node.inputs[0]]), weight, bias)
        new = correct(Step(node, operator, x, y, weight, bias, codes, run))
        kept_bias = bias if new.bias is None else new.bias
        cuts = np.cumsum([len(batch) for batch in batches])[:-1]
        self.float_values[node.output] = np.split(y, cuts)
        self.int8_values[node.output] = np.split(run(x, dequantize(new), kept_bias), cuts)
        self._release(node)
        return new

    def _read(self, node: Node, tensor: str, values: Mapping[str, Batches], quantized: bool) -> Batches:
        if quantized and (node.name, tensor) in self.plan.reads:
            return [fake_quantize(batch, self.activations[tensor]) for batch in values[tensor]]
        return values[tensor]

    def _constant(self, name: str) -> np.ndarray:
        return self.model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]

    def _release(self, node: Node) -> None:
        for tensor in node.inputs:
            self.readers[tensor] -= 1
            if self.readers[tensor] == 0:
                self.float_values.pop(tensor, None)
                self.int8_values.pop(tensor, None)


def _channels(operator: ir.Node, weight: np.ndarray) -> int:
    if operator.op_type == "ConvTranspose":
        return weight.shape[1] * operator.attributes.get_int("group", 1)
    if operator.op_type == "Gemm":
        return weight.shape[0 if operator.attributes.get_int("transB", 0) else 1]
    return weight.shape[0]


def fake_quantize(x: np.ndarray, scale: ActivationScale) -> np.ndarray:
    """Value after QuantizeLinear and DequantizeLinear, float32; one new array, worked on in place."""
    low, high = (-128, 127) if scale.signed else (0, 255)
    codes = x / np.float32(scale.scale)
    np.rint(codes, out=codes)
    np.clip(codes, low - scale.zero_point, high - scale.zero_point, out=codes)
    codes *= np.float32(scale.scale)
    return codes


def dequantize(codes: WeightCodes) -> np.ndarray:
    """Real weights of codes, float32."""
    return codes.codes.astype(np.float32) * shape_scales(codes.scales, codes.codes.ndim, codes.axis)


def _session(
    model: ir.Model, operator: ir.Node, free: Sequence[str], *, with_bias: bool = False
) -> tuple[ort.InferenceSession, list[str]]:
    """Session of one node whose constants are built in, except those in ``free``; and its input names."""
    proto = ir.serde.serialize_node(operator)
    if with_bias and operator.op_type != "MatMul" and len(proto.input) < 3:
        proto.input.append("__bias")
    read = [name for name in dict.fromkeys([*proto.input, *captured(operator)]) if name]
    fixed = [name for name in read if name in model.graph.initializers and name not in free]
    fed = [name for name in read if name not in fixed]
    dtypes = {name: _dtype(operator, name) for name in fed}
    return part_session(model, [proto], dtypes, fixed, [name for name in proto.output if name]), fed


def _dtype(operator: ir.Node, name: str) -> int:
    """ONNX element type of an input; float32 where the file does not say."""
    dtype = next((value.dtype for value in operator.inputs if value is not None and value.name == name), None)
    return onnx.TensorProto.FLOAT if dtype is None else int(dtype)
