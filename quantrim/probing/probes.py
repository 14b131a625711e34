"""Small float models, each with one op between two convolutions: what an engine is asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Channels and side of the activations: enough for the fast kernels of every engine, and for a time to measure.
CHANNELS, SIDE = 32, 28
_OPSET = 20


@dataclass(frozen=True, slots=True)
class Probe:
    """A model that asks one question.

    Attributes:
        op: canonical name of the op in question.
        model: float model; its input "x" is float32 of shape ``shape``.
        shape: of the input.
        asked: names of the nodes that the op is.
        layers: names of the linear nodes around it.
        signed: whether its values are of both signs, so that zero points are not 0.
    """

    op: str
    model: onnx.ModelProto
    shape: tuple[int, ...]
    asked: tuple[str, ...]
    layers: tuple[str, ...]
    signed: bool

    @property
    def feed(self) -> dict[str, np.ndarray]:
        """An input: of both signs, or nowhere negative."""
        generator = np.random.default_rng(0)
        if self.signed:
            return {"x": generator.standard_normal(self.shape, np.float32)}
        return {"x": generator.random(self.shape, np.float32)}


#: The same question on values that are nowhere negative, as behind a ReLU, and on values of both signs, whose
#: zero points are not 0.
Question = tuple[Probe, Probe]


@dataclass
class _Draft:
    """A model in the making; a node's name is that of its first result without the "_out"."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    signed: bool = False
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, results_of(f"{name}_out", outputs), name, **attributes)
        )
        return f"{name}_out"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        """Weights of a layer; all above 0 where nothing shall be negative, as behind a ReLU."""
        if self.signed:
            return self.constant(self.generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))
        return self.constant(self.generator.random(shape) / np.prod(shape[1:]))

    def conv(
        self,
        value: str,
        channels: int,
        made: int = CHANNELS,
        *,
        axes: int = 2,
        side: int = 1,
        gain: float = 1,
    ) -> str:
        """A convolution of ``side`` by ``side`` over so many axes; the gain widens the range of its results."""
        kernel = [side] * axes
        bias = self.constant(gain * self.generator.random(made))
        inputs = [value, self.weight(made, channels, *kernel), bias]
        return self.add("Conv", inputs, kernel_shape=kernel, pads=[side // 2] * (2 * axes))

    def linear(self, value: str, features: int, made: int = CHANNELS) -> str:
        bias = self.constant(self.generator.random(made))
        return self.add("Gemm", [value, self.weight(made, features), bias], transB=1)

    def read(self, value: str, shape: Sequence[int]) -> str:
        """A linear layer that reads a value of a shape: what makes INT8 before it worth while."""
        if len(shape) == 2:
            return self.linear(value, shape[1])
        return self.conv(value, shape[1], axes=len(shape) - 2)

    def probe(self, op: str, shape: Sequence[int], results: Sequence[str], asked: Sequence[str]) -> Probe:
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
        graph = helper.make_graph(self.nodes, op, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        names = tuple(value.removesuffix("_out") for value in asked)
        layers = tuple(n.name for n in self.nodes if n.op_type in ("Conv", "Gemm") and n.name not in names)
        return Probe(op, onnx.shape_inference.infer_shapes(model), tuple(shape), names, layers, self.signed)


def results_of(name: str, count: int) -> list[str]:
    """Names of a node's results, of which the first is given."""
    return [name if not index else f"{name}_{index}" for index in range(count)]


_IMAGE = (1, CHANNELS, SIDE, SIDE)
_ROW = (1, CHANNELS, 1, SIDE * SIDE)


@dataclass(frozen=True, slots=True)
class Case:
    """An op of one activation.

    Attributes:
        kind: its op type of ONNX.
        result: shape of what it makes.
        attributes: of the node.
        operands: constant inputs behind the activation.
        given: shape that it reads.
    """

    kind: str
    result: tuple[int, ...] = _IMAGE
    attributes: Mapping[str, Any] = field(default_factory=dict)
    operands: tuple[np.ndarray, ...] = ()
    given: tuple[int, ...] = _IMAGE


def _f32(*values: float) -> np.ndarray:
    return np.asarray(values[0] if len(values) == 1 else values, np.float32)


def _i64(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


_HALF = (1, CHANNELS, SIDE // 2, SIDE // 2)
#: Functions of each value.
FUNCTIONS = {
    "relu": Case("Relu"),
    "clip": Case("Clip", operands=(_f32(0), _f32(6))),
    "leaky_relu": Case("LeakyRelu", attributes={"alpha": 0.1}),
    "elu": Case("Elu"),
    "gelu": Case("Gelu"),
    "sigmoid": Case("Sigmoid"),
    "hard_sigmoid": Case("HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),  # torch's
    "hard_swish": Case("HardSwish"),
    "mish": Case("Mish"),
    "tanh": Case("Tanh"),
    "softplus": Case("Softplus"),
    "erf": Case("Erf"),
}
#: Ops of one activation that make other values.
AVERAGES = {
    "avg_pool": Case("AveragePool", _HALF, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "global_avg_pool": Case("GlobalAveragePool", (1, CHANNELS, 1, 1)),
    "softmax": Case("Softmax", attributes={"axis": 1}),
}
#: Ops of one activation that keep its values, or stay between them.
MOVERS = {
    "max_pool": Case("MaxPool", _HALF, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "reshape": Case("Reshape", (1, 2 * CHANNELS, SIDE, SIDE // 2),
                     operands=(_i64(1, 2 * CHANNELS, SIDE, SIDE // 2),)),
    "flatten": Case("Flatten", (1, CHANNELS * 64), given=(1, CHANNELS, 8, 8)),
    "squeeze": Case("Squeeze", (1, CHANNELS, SIDE * SIDE), operands=(_i64(2),), given=_ROW),
    "unsqueeze": Case("Unsqueeze", _ROW, operands=(_i64(2),), given=(1, CHANNELS, SIDE * SIDE)),
    "transpose": Case("Transpose", attributes={"perm": [0, 1, 3, 2]}),
    "split": Case("Split", (1, CHANNELS // 2, SIDE, SIDE), {"axis": 1, "num_outputs": 2}),
    "resize": Case("Resize", (1, CHANNELS, 2 * SIDE, 2 * SIDE), {"mode": "nearest"},
                    (_f32(), _f32(1, 1, 2, 2))),
    "identity": Case("Identity"),
    "depth_to_space": Case("DepthToSpace", (1, CHANNELS // 4, 2 * SIDE, 2 * SIDE), {"blocksize": 2}),
    "space_to_depth": Case("SpaceToDepth", (1, 4 * CHANNELS, SIDE // 2, SIDE // 2), {"blocksize": 2}),
    "slice": Case("Slice", (1, CHANNELS // 2, SIDE, SIDE), operands=(_i64(0), _i64(CHANNELS // 2), _i64(1))),
}  # fmt: skip


def question(build: Callable[..., Probe], *arguments: Any) -> Question:
    """A probe, and the same with values of both signs."""
    return build(*arguments), build(*arguments, signed=True)


def of_one(op: str, case: Case, signed: bool = False) -> Probe:
    """A layer, the op, and a layer that reads each of its results."""
    draft = _Draft(signed=signed)
    before = draft.conv("x", case.given[1], axes=len(case.given) - 2, side=3 if case.given == _IMAGE else 1)
    outputs = case.attributes.get("num_outputs", 1)
    operands = [draft.constant(value, value.dtype) if value.size else "" for value in case.operands]
    name = draft.add(case.kind, [before, *operands], outputs, **case.attributes)
    results = [draft.read(one, case.result) for one in results_of(name, outputs)]
    return draft.probe(op, case.given, results, [name])


def swish(signed: bool = False) -> Probe:
    """x * sigmoid(x), which ONNX has no op for."""
    draft = _Draft(signed=signed)
    before = draft.conv("x", CHANNELS, side=3)
    gate = draft.add("Sigmoid", [before])
    product = draft.add("Mul", [before, gate])
    return draft.probe("swish", _IMAGE, [draft.read(product, _IMAGE)], [gate, product])


def of_two(op: str, signed: bool = False) -> Probe:
    """An op that joins the results of two convolutions, one of twice the other's range."""
    draft = _Draft(signed=signed)
    values = [draft.conv("x", CHANNELS, side=3, gain=gain) for gain in (1, 2)]
    if op == "concat":
        name, shape = draft.add("Concat", values, axis=1), (1, 2 * CHANNELS, SIDE, SIDE)
    else:
        name, shape = draft.add(op.capitalize(), values), _IMAGE
    return draft.probe(op, _IMAGE, [draft.read(name, shape)], [name])


def residual(signed: bool = False) -> Probe:
    """Two convolutions around which the input of the first is added, as in ResNet."""
    draft = _Draft(signed=signed)
    stem = draft.add("Relu", [draft.conv("x", CHANNELS, side=3)])
    inner = draft.add("Relu", [draft.conv(stem, CHANNELS, side=3)])
    joined = draft.add("Add", [draft.conv(inner, CHANNELS, side=3), stem])
    return draft.probe("add", _IMAGE, [draft.read(draft.add("Relu", [joined]), _IMAGE)], [joined])


def linear(op: str, signed: bool = False) -> Probe:
    """A linear layer whose result only a float function reads."""
    draft = _Draft(signed=signed)
    shape: tuple[int, ...] = _IMAGE
    if op == "conv":
        name = draft.conv("x", CHANNELS, side=3)
    elif op == "linear":
        shape = (128, 16 * CHANNELS)
        name = draft.linear("x", shape[1])
    else:
        kernel = draft.weight(CHANNELS, CHANNELS, 2, 2)
        name = draft.add("ConvTranspose", ["x", kernel], kernel_shape=[2, 2], strides=[2, 2])
    return draft.probe(op, shape, [draft.add("Softmax", [name], axis=1)], [name])


def matmul(signed: bool = False) -> Probe:
    """A product of two activations, as in attention: of queries and keys."""
    draft = _Draft(signed=signed)
    features = 2 * CHANNELS
    queries, keys = (draft.add("MatMul", ["x", draft.weight(features, features)]) for _ in range(2))
    product = draft.add("MatMul", [queries, draft.add("Transpose", [keys], perm=[0, 2, 1])])
    return draft.probe("matmul", (1, 4 * SIDE, features), [draft.add("Softmax", [product])], [product])


def plain(signed: bool = False) -> Probe:
    """Two convolutions and nothing between them."""
    draft = _Draft(signed=signed)
    before = draft.conv("x", CHANNELS, side=3)
    return draft.probe("conv", _IMAGE, [draft.read(before, _IMAGE)], [])
