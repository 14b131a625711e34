"""Walk a model node by node, float and quantized side by side.

At every linear layer a correction sees the input that the INT8 kernel will read, which carries the errors
of all quantized layers before it, and the output that the float model gives. Each node is run once, those
between two layers together, so a walk costs two forward passes of the samples it is given, whatever the number
of layers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from quantrim.graph.bodies import captured
from quantrim.graph.segments import part_session
from quantrim.graph.view import Graph, Node
from quantrim.placement.plan import Plan
from quantrim.ranges import ActivationScale
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import shape_scales

#: Bytes of input samples that a walk holds at most; its live tensors are a few times that.
_INPUT_BYTES = 20_000_000

Batches = list[np.ndarray]


@dataclass(frozen=True)
class Step:
    """One linear layer of a walk.

    Attributes:
        node: graph view of the layer.
        operator: the ONNX node, with its attributes.
        inputs: batches as the INT8 kernel reads them, float32.
        float_outputs: what the float model makes, float32, a batch each.
        int8_outputs: what the layer makes of ``inputs`` with its current codes, float32, a batch each.
        weight: float32 weight.
        bias: float32 bias or None.
        codes: current codes of the weight.
        run: the layer's function of (input, weight, bias).
    """

    node: Node
    operator: ir.Node
    inputs: Batches
    float_outputs: Batches
    int8_outputs: Batches
    weight: np.ndarray
    bias: np.ndarray | None
    codes: WeightCodes
    run: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]

    @cached_property
    def x(self) -> np.ndarray:
        """All inputs in one array."""
        return np.concatenate(self.inputs)

    @cached_property
    def y(self) -> np.ndarray:
        """All outputs of the float model in one array."""
        return np.concatenate(self.float_outputs)

    @property
    def channel_axis(self) -> int:
        """Axis of the outputs that counts channels."""
        return self.float_outputs[0].ndim - 1 if self.node.op == "linear" else 1

    def with_codes(self, codes: WeightCodes) -> Step:
        """The same layer with other codes; it is run again where they differ in more than the bias."""
        if codes.codes is self.codes.codes and codes.scales is self.codes.scales:
            return replace(self, int8_outputs=self._shifted(codes), codes=codes)
        bias = self.bias if codes.bias is None else codes.bias
        made = [self.run(x, dequantize(codes), bias) for x in self.inputs]
        return replace(self, int8_outputs=made, codes=codes)

    def _shifted(self, codes: WeightCodes) -> Batches:
        """Outputs with another bias; those of the old one are overwritten."""
        old = self.bias if self.codes.bias is None else self.codes.bias
        new = self.bias if codes.bias is None else codes.bias
        if new is None or new is old:
            return self.int8_outputs
        shape = [1] * self.float_outputs[0].ndim
        shape[self.channel_axis] = -1
        shift = (new if old is None else new - old).astype(np.float32).reshape(shape)
        for batch in self.int8_outputs:
            batch += shift
        return self.int8_outputs


Correct = Callable[[Step], WeightCodes]
Rounding = Callable[[Step], WeightCodes]


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
    for part in _parts(model, graph, plan, corrected.keys()):
        node = graph.by_name[str(part[0].name)]
        if node.name in corrected and node.weight is not None:
            corrected[node.name] = walker.linear(part[0], node, corrected[node.name], correct)
        else:
            walker.plain(part)
    return corrected


def _parts(model: ir.Model, graph: Graph, plan: Plan, linear: Collection[str]) -> Iterator[list[ir.Node]]:
    """The model cut into quantized layers and the nodes between them; what no layer depends on is left out.

    A tensor that some nodes read quantized and others not, or that is quantized inside a part, ends a part.
    """
    part: list[ir.Node] = []
    made: set[str] = set()
    fed: dict[str, bool] = {}
    needed = _before(graph, linear)
    for operator in model.graph:
        node = graph.by_name[str(operator.name)]
        if node.name not in needed:
            continue
        if node.name in linear and node.weight is not None:
            if part:
                yield part
            yield [operator]
            part, made, fed = [], set(), {}
            continue
        reads = {tensor: (node.name, tensor) in plan.reads for tensor in node.inputs}
        clash = any(q if t in made else fed.get(t, q) != q for t, q in reads.items())
        if clash:
            yield part
            part, made, fed = [], set(), {}
        part.append(operator)
        made.update(node.outputs)
        fed.update((tensor, quantized) for tensor, quantized in reads.items() if tensor not in made)


def _before(graph: Graph, layers: Collection[str]) -> set[str]:
    """Names of the given nodes and of all that they depend on."""
    needed, wanted = set[str](), set[str]()
    for node in reversed(graph.nodes):
        if node.name in layers or wanted.intersection(node.outputs):
            needed.add(node.name)
            wanted.update(node.inputs)
    return needed


def _affordable(feeds: Sequence[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """As many batches as the budget allows, all of the first one's shape but for the batch axis."""
    first = feeds[0]
    shapes = {name: array.shape[1:] for name, array in first.items()}
    same = [f for f in feeds if all(f[name].shape[1:] == shape for name, shape in shapes.items())]
    per_batch = max(1, sum(array.nbytes for array in first.values()))
    return same[: max(1, _INPUT_BYTES // per_batch)]


class _Walker:
    """Values of both walks, one array a batch, dropped as soon as nobody needs them.

    Batches stay apart: a model with a fixed batch can't run them together, and small ones stay in the cache.
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

    def plain(self, operators: Sequence[ir.Node]) -> None:
        """Run nodes that have no quantized weight."""
        nodes = [self.graph.by_name[str(operator.name)] for operator in operators]
        inside = {node.name for node in nodes}
        outputs = [
            tensor
            for node in nodes
            for tensor in node.outputs
            if any(reader.name not in inside for reader in self.graph.consumers.get(tensor, ()))
        ]
        if outputs:
            session, names = _session(self.model, operators, (), outputs)
            readers = {tensor: node for node in reversed(nodes) for tensor in node.inputs}
            for values, quantized in ((self.float_values, False), (self.int8_values, True)):
                read = {name: self._read(readers[name], name, values, quantized) for name in names}
                count = len(next(iter(read.values()), next(iter(values.values()))))
                feeds = [{name: read[name][i] for name in names} for i in range(count)]
                made = _side_by_side(session, outputs, feeds)
                values.update({name: [batch[k] for batch in made] for k, name in enumerate(outputs)})
        for node in nodes:
            self._release(node)

    def linear(self, operator: ir.Node, node: Node, codes: WeightCodes, correct: Correct) -> WeightCodes:
        """Run a quantized layer and let ``correct`` change its codes."""
        assert node.weight is not None
        layer = _Layer(self.model, operator, node)
        weight = self._constant(node.weight.name)
        bias = self._constant(node.bias) if node.bias else None
        inputs = self._read(node, node.inputs[0], self.int8_values, quantized=True)
        floats = layer.run_all(self.float_values[node.inputs[0]], weight, bias)
        kept = bias if codes.bias is None else codes.bias
        made = layer.run_all(inputs, dequantize(codes), kept)
        step = Step(node, operator, inputs, floats, made, weight, bias, codes, layer.run)
        new = step.with_codes(correct(step))
        self.float_values[node.output], self.int8_values[node.output] = floats, new.int8_outputs
        self._release(node)
        return new.codes

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


def _side_by_side(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Sequence[Mapping[str, np.ndarray]]
) -> list[list[np.ndarray]]:
    """Outputs of each feed, on all cores; a session of few nodes has one thread, which waits for nobody."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda feed: session.run(list(outputs), feed), feeds))


class _Layer:
    """A linear layer as a function of its input, weight and bias."""

    def __init__(self, model: ir.Model, operator: ir.Node, node: Node) -> None:
        assert node.weight is not None
        self.model, self.operator, self.node, self.weight = model, operator, node, node.weight.name
        free = [str(value.name) for value in operator.inputs[1:3] if value is not None]
        self.bias = free[1] if len(free) > 1 else "__bias"

    def run_all(self, batches: Batches, weight: np.ndarray, bias: np.ndarray | None) -> Batches:
        """The layer on several batches, with constants built in: ONNX Runtime's fast kernels read no others."""
        constants = {self.weight: weight}
        if self.operator.op_type != "MatMul":
            constants[self.bias] = self._bias(weight, bias)
        session, _ = _session(self.model, [self.operator], (), [self.node.output], constants)
        names = [self.node.output]
        return [made[0] for made in _side_by_side(session, names, [{self.node.inputs[0]: x} for x in batches])]

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The layer on one batch, with any weight."""
        feed = {self.node.inputs[0]: x, self.weight: weight}
        if self.operator.op_type != "MatMul":
            feed[self.bias] = self._bias(weight, bias)
        return self._free.run([self.node.output], feed)[0]

    @cached_property
    def _free(self) -> ort.InferenceSession:
        return _session(self.model, [self.operator], (self.weight, self.bias), [self.node.output], {})[0]

    def _bias(self, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return np.zeros(_channels(self.operator, weight), np.float32) if bias is None else bias


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
    model: ir.Model,
    operators: Sequence[ir.Node],
    free: Sequence[str],
    returned: Sequence[str],
    replaced: Mapping[str, np.ndarray] | None = None,
) -> tuple[ort.InferenceSession, list[str]]:
    """Session of some nodes whose constants are built in, except those in ``free``; and its input names.

    With ``replaced``, the nodes are one linear layer, which gets a bias where it has none.
    """
    protos = [ir.serde.serialize_node(operator) for operator in operators]
    if replaced is not None and operators[0].op_type != "MatMul" and len(protos[0].input) < 3:
        protos[0].input.append("__bias")
    made = {name for proto in protos for name in proto.output}
    named = [name for proto in protos for name in proto.input]
    named += [name for operator in operators for name in captured(operator)]
    read = [name for name in dict.fromkeys(named) if name and name not in made]
    replaced = replaced or {}
    known = model.graph.initializers.keys() | replaced.keys()
    fixed = [name for name in read if name in known and name not in free]
    fed = [name for name in read if name not in fixed]
    dtypes = {name: _dtype(operators, name) for name in fed}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return part_session(model, protos, dtypes, fixed, returned, options, replaced), fed


def _dtype(operators: Sequence[ir.Node], name: str) -> int:
    """ONNX element type of an input; float32 where the file does not say."""
    values = (value for operator in operators for value in operator.inputs if value is not None)
    dtype = next((value.dtype for value in values if value.name == name), None)
    return onnx.TensorProto.FLOAT if dtype is None else int(dtype)
