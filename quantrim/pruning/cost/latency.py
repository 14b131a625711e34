"""Milliseconds as a function of widths, from layers timed on the engine.

Each convolution and linear layer is timed alone on the engine at several widths in and out; between them times
are interpolated, and output widths are rounded up to the block of channels that the engine computes at once
(16 with AVX-512), which is measured too. What only moves memory is charged by a measured rate. The sum is
scaled to the measured time of the whole model. Modelling both sides of a layer follows HALP (arXiv 2110.10811)
and MDP (arXiv 2504.02168); the code is our own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from quantrim.engines import open_session
from quantrim.engines.bench import bench
from quantrim.errors import ModelError
from quantrim.graph.from_torch import export_onnx
from quantrim.pruning.cost.cost import Kept, Widths, WidthTable, full_widths
from quantrim.pruning.groups.groups import ChannelGraph
from quantrim.pruning.groups.slots import ChannelIds
from quantrim.pruning.groups.values import GraphCall, Result, Value
from quantrim.scratch import scratch_folder

#: Widths at which a layer is timed, as shares of its full width.
_SHARES = (1.0, 0.75, 0.5, 0.25)
#: Operators that the engine runs on their own and that only move memory.
_MOVERS = ("cat", "add", "add_", "mul", "upsample_", "max_pool", "avg_pool", "adaptive_avg_pool", "sigmoid")


@dataclass(frozen=True, slots=True)
class Engine:
    """Where milliseconds count.

    Attributes:
        name: "openvino" or "onnxruntime".
        threads: CPU threads.
        repeat: timed runs of a layer; their lower quartile counts.
    """

    name: str = "openvino"
    threads: int = 1
    repeat: int = 9


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution (linear layers are 1x1) by all that its time depends on.

    Attributes:
        kernel: sizes of the kernel.
        stride: steps.
        padding: on each side.
        dilation: of the kernel.
        groups: 1, or more for grouped and depthwise ones.
        transposed: a transposed convolution.
        size: height and width of the input.
        inner: input channels.
        outer: output channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    size: tuple[int, ...]
    inner: int
    outer: int


@dataclass(frozen=True, slots=True)
class _Table:
    """Times of one layer.

    Attributes:
        inner: input widths timed with all outputs, rising from 0.
        by_inner: milliseconds.
        outer: output widths timed with all inputs, rising from 0.
        by_outer: milliseconds.
        block: output widths are rounded up to a multiple of this.
    """

    inner: NDArray[np.float64]
    by_inner: NDArray[np.float64]
    outer: NDArray[np.float64]
    by_outer: NDArray[np.float64]
    block: int

    def __call__(self, inner: NDArray[np.float64], outer: NDArray[np.float64]) -> NDArray[np.float64]:
        """Milliseconds at widths."""
        rounded = np.ceil(outer / self.block) * self.block
        factor = np.interp(inner, self.inner, self.by_inner) / max(self.by_inner[-1], 1e-9)
        return np.asarray(factor * np.interp(rounded, self.outer, self.by_outer))


@dataclass(frozen=True, slots=True, eq=False)
class LatencyModel:
    """Milliseconds with some units kept; an objective for :func:`quantrim.pruning.prune`.

    Attributes:
        widths: of all channel dimensions that matter.
        layers: table, row of the input's and of the output's channels and of the block, for each timed layer.
        moved: constant and rows of channels and block whose product is the numbers moved.
        rate: milliseconds for each number moved.
        scale: measured time of the whole model over the sum.
        full_ms: time of the unpruned model, as measured.
    """

    widths: Widths
    layers: tuple[tuple[_Table, int, int, int], ...]
    moved: tuple[tuple[float, int, int], ...]
    rate: float
    scale: float
    full_ms: float

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """Milliseconds, float64[...]."""
        widths = self.widths(kept)
        total = np.zeros(np.shape(kept)[:-1])
        for table, inner, outer, block in self.layers:
            total = total + table(widths[..., inner], widths[..., outer]) * widths[..., block]
        for constant, row, block in self.moved:
            total = total + self.rate * constant * widths[..., row] * widths[..., block]
        return np.asarray(total * self.scale)


def latency_model(
    module: nn.Module,
    example_inputs: Tensor,
    graph: ChannelGraph,
    engine: Engine | None = None,
    *,
    on_layer: Callable[[int, int], None] | None = None,
) -> LatencyModel:
    """Time a model's layers on an engine.

    Args:
        module: the model.
        example_inputs: of the shape that is deployed; ``graph`` must have been made with it.
        graph: its groups.
        engine: where to time.
        on_layer: called with the number of layers timed and their total.

    Raises:
        EngineError: the engine is not installed or refuses the model.
    """
    engine = engine or Engine()
    bench_of = _Stopwatch(engine)
    found = [(_layer_of(call), call, result) for call, result in graph.calls]
    layers = [(layer, call, result) for layer, call, result in found if layer is not None]
    tables: dict[_Layer, _Table] = {}
    distinct = {layer for layer, _, _ in layers}
    block = bench_of.block()
    for number, layer in enumerate(sorted(distinct, key=repr)):
        tables[layer] = bench_of.table(layer, block)
        if on_layer is not None:
            on_layer(number + 1, len(distinct))
    rows = WidthTable(graph)
    timed = tuple(
        (tables[layer], *_rows(rows, call, result), _block(rows, call)) for layer, call, result in layers
    )
    movers = ((call, result) for call, result in graph.calls if call.name.startswith(_MOVERS))
    moved = tuple((*_moved(rows, call, result), _block(rows, call)) for call, result in movers)
    full_ms = measured_ms(module, example_inputs, engine)
    model = LatencyModel(rows.widths(), timed, moved, bench_of.rate(), 1.0, full_ms)
    return replace(model, scale=full_ms / max(1e-9, float(model(full_widths(graph)))))


def measured_ms(module: nn.Module, example_inputs: Tensor, engine: Engine | None = None) -> float:
    """Median milliseconds of a module on an engine."""
    return measured_side_by_side([module], example_inputs, engine)[0]


def measured_side_by_side(
    modules: Sequence[nn.Module], example_inputs: Tensor, engine: Engine | None = None, repeat: int = 15
) -> list[float]:
    """Median milliseconds of modules that take turns on an engine."""
    engine = engine or Engine()
    with scratch_folder() as folder:
        paths = [folder / f"model{number}.onnx" for number in range(len(modules))]
        for module, path in zip(modules, paths, strict=True):
            export_onnx(module, example_inputs, path, dynamic_batch=False, parity=False)
        rows = bench(paths, engines=(engine.name,), threads=engine.threads, warmup=3, repeat=repeat)
    return [row.latency_ms.median for row in rows]


class _Stopwatch:
    """Times small graphs on an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.overhead = 0.0
        self.overhead = self._time(_relu_model((1, 1, 1, 1)))

    def block(self) -> int:
        """Channels that a convolution computes at once: 16 if 40 outputs cost what 48 cost, else 8."""
        probe = _Layer((3, 3), (1, 1), (1, 1), (1, 1), 1, False, (32, 32), 64, 32)
        low, middle, high = (self._time(_conv_model(replace(probe, outer=width))) for width in (32, 40, 48))
        return 16 if high - middle < middle - low else 8

    def rate(self) -> float:
        """Milliseconds for each number read or written."""
        shape = (1, 64, 128, 128)
        return self._time(_relu_model(shape)) / (2 * math.prod(shape))

    def table(self, layer: _Layer, block: int) -> _Table:
        """Times of a layer at several widths."""
        if layer.groups > 1:  # both widths change together; one side tells all
            widths = _stops(layer.outer, max(8, layer.groups if layer.groups < layer.inner else 8))
            times = [self._time(_conv_model(_narrowed(layer, width))) for width in widths]
            flat = np.array([0.0, layer.inner]), np.ones(2)
            return _Table(*flat, np.append(0.0, widths), np.append(0.0, times), 1)
        outers = _stops(layer.outer, block)
        inners = _stops(layer.inner, 8)
        by_outer = [self._time(_conv_model(replace(layer, outer=width))) for width in outers]
        by_inner = [self._time(_conv_model(replace(layer, inner=width))) for width in inners[:-1]]
        return _Table(
            np.append(0.0, inners),
            np.array([0.0, *by_inner, by_outer[-1]]),
            np.append(0.0, outers),
            np.append(0.0, by_outer),
            block,
        )

    def _time(self, model: onnx.ModelProto) -> float:
        """Lower quartile of milliseconds, without what an empty run takes."""
        with scratch_folder() as folder:
            path = folder / "layer.onnx"
            onnx.save(model, path)
            session = open_session(path, self.engine.name, threads=self.engine.threads)
        feed = {port.name: np.ones([int(s or 1) for s in port.shape], np.float32) for port in session.inputs}
        times = []
        for _ in range(self.engine.repeat + 2):
            start = time.perf_counter()
            session.run(feed)
            times.append((time.perf_counter() - start) * 1e3)
        return max(1e-4, float(np.percentile(times[2:], 25)) - self.overhead)


def _stops(full: int, step: int) -> NDArray[np.float64]:
    """Widths to time, rising, multiples of ``step`` except the full one."""
    stops = {min(full, max(step, math.ceil(full * share / step) * step)) for share in _SHARES}
    return np.array(sorted(stops | {full}), dtype=np.float64)


def _narrowed(layer: _Layer, outer: float) -> _Layer:
    """A grouped layer with fewer channels: fewer groups if it is depthwise, else narrower groups."""
    share = outer / layer.outer
    inner = max(1, round(layer.inner * share))
    if layer.groups == layer.inner or (layer.transposed and layer.groups == layer.outer):
        return replace(layer, groups=inner, inner=inner, outer=inner * (layer.outer // layer.inner))
    inner = max(1, inner // layer.groups) * layer.groups
    return replace(layer, inner=inner, outer=max(1, int(outer) // layer.groups) * layer.groups)


def _layer_of(call: GraphCall) -> _Layer | None:
    weight = call.tensor("weight")
    if weight is None or not (call.name.startswith("conv") or call.name == "linear"):
        return None
    value, rank = call.input(), len(weight.shape) - 2
    if call.name == "linear":
        rows = math.prod(value.shape[:-1])
        outer, inner = weight.shape
        return _Layer((1, 1), (1, 1), (0, 0), (1, 1), 1, False, (1, rows), inner, outer)
    arguments = call.arguments
    transposed = "transpose" in call.name
    groups = int(arguments.get("groups") or 1)
    size = value.shape[-rank:]
    padding = arguments.get("padding") or 0
    if isinstance(padding, str):
        padding = [k // 2 for k in weight.shape[2:]] if padding == "same" else 0
    return _Layer(
        weight.shape[2:], _many(arguments["stride"], rank), _many(padding, rank),
        _many(arguments["dilation"], rank), groups, transposed, size, value.shape[-rank - 1],
        call.shapes[0][-rank - 1],
    )  # fmt: skip


def _many(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))


def _rows(rows: WidthTable, call: GraphCall, result: Result) -> tuple[int, int]:
    """Rows of the channels that a layer reads and makes."""
    if not isinstance(result, Value):
        raise ModelError(f"{call.name} in {call.place} returns no single tensor")
    value = call.input()
    axis = -1 if call.name == "linear" else 1
    return _row(rows, value, axis), _row(rows, result, axis)


def _block(rows: WidthTable, call: GraphCall) -> int:
    """Row of the block around a call, which is 1 or 0 wide; of something that stays where there is none."""
    around = rows.graph.blocks_around(call.layer)
    return rows.add(around[0] if around else _fixed(1, rows))


def _row(rows: WidthTable, value: Value, axis: int) -> int:
    slots = value.dims[axis]
    return rows.add(slots if slots is not None else _fixed(value.shape[axis], rows))


def _fixed(size: int, rows: WidthTable) -> ChannelIds:
    """A dimension that never changes: the last, unowned slot, so many times."""
    return np.full(size, len(rows.graph.group_of_slot) - 1, dtype=np.int64)


def _moved(rows: WidthTable, call: GraphCall, result: Result) -> tuple[float, int]:
    """Numbers read and written for each channel, and the row of the channels."""
    if not isinstance(result, Value):
        return 0.0, rows.add(_fixed(1, rows))
    axis = next((i for i, slots in enumerate(result.dims) if slots is not None), None)
    if axis is None:
        return float(math.prod(result.shape)), rows.add(_fixed(1, rows))
    numbers = sum(math.prod(value.shape) for value in (*call.tensors(), result))
    return numbers / result.shape[axis], _row(rows, result, axis)


def _conv_model(layer: _Layer) -> onnx.ModelProto:
    """Convolution and ReLU; of the output a corner is returned, so that no large array is copied."""
    weight_shape = (
        (layer.inner, layer.outer // layer.groups)
        if layer.transposed
        else (layer.outer, layer.inner // layer.groups)
    )
    shape = tuple(int(size) for size in (*weight_shape, *layer.kernel))
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    attributes = {
        "strides": list(layer.stride), "pads": list(layer.padding) * 2, "dilations": list(layer.dilation),
        "group": int(layer.groups),
    }  # fmt: skip
    bias = np.zeros(int(layer.outer), np.float32)
    node = helper.make_node(
        "ConvTranspose" if layer.transposed else "Conv", ["x", "w", "b"], ["y"], **attributes
    )
    return _model([node], (1, int(layer.inner), *layer.size), {"w": weight, "b": bias})


def _relu_model(shape: tuple[int, ...]) -> onnx.ModelProto:
    return _model([helper.make_node("Neg", ["x"], ["y"])], shape, {})


def _model(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    corner = {
        "starts": [0] * (len(shape) - 2),
        "ends": [1] * (len(shape) - 2),
        "axes": list(range(2, len(shape))),
    }
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in corner.items()]
    constants += [numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [*nodes, helper.make_node("Relu", ["y"], ["z"]), helper.make_node("Slice", ["z", *corner], ["out"])]
    graph = helper.make_graph(
        nodes, "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
