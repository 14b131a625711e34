"""Mean output of a linear layer without running it: products of its weight with means of its input.

The mean of a convolution over samples and positions is linear in its input, so for each tap of the kernel the
mean of the input values that it meets is enough. They are sums over rows and columns of the input, taken while
calibration has it in its hands, and hold for every weight: for the float one as for the quantized one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from quantrim.graph import Graph
from quantrim.placement.plan import Plan

Means = npt.NDArray[np.float64]

#: Samples that the first batches hold, whose means are kept.
MEAN_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Taps:
    """Which values of its input each tap of a layer's kernel meets.

    Attributes:
        source: input tensor.
        sizes: of the axes of the input behind its channels; means of other sizes would not fit these.
        groups: of channels.
        channels_last: the weight's output channels are its last axis but those of the kernel (of each group).
        meets: for each axis of the kernel, float32 (size, taps): 1 where a tap meets a position of the input.
        positions: output positions of a sample; sums are divided by them.
    """

    source: str
    sizes: tuple[int, ...]
    groups: int
    channels_last: bool
    meets: tuple[np.ndarray, ...]
    positions: int

    def sums(self, x: np.ndarray) -> Means:
        """Sum over samples and positions of what each tap meets, float64 (channels, *kernel).

        Args:
            x: float32 (samples, channels, *sizes).
        """
        sums: np.ndarray = x
        for done, meets in enumerate(reversed(self.meets)):
            sums = np.tensordot(sums, meets, axes=(x.ndim - 1 - done, 0))  # the taps become the last axis
        kernel = range(x.ndim - 2, 0, -1)
        return sums.sum(axis=0, dtype=np.float64).transpose(0, *kernel)

    def mean_output(self, weight: np.ndarray, means: Means) -> Means:
        """Mean of each output channel, without bias, float64 (channels).

        Args:
            weight: float, as the layer's operator reads it.
            means: :meth:`sums` over the number of samples and positions.
        """
        kernel = weight.shape[2:]
        parts = means.reshape(self.groups, -1, *kernel)
        if self.channels_last:  # (in, out of a group, *kernel)
            split: np.ndarray = weight.reshape(self.groups, -1, weight.shape[1], prod(kernel))
            return np.einsum("giok,gik->go", split, parts.reshape(self.groups, -1, prod(kernel))).ravel()
        split = weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        return np.einsum("gok,gk->go", split, parts.reshape(self.groups, -1)).ravel()


def taps_of(model: ir.Model, graph: Graph, plan: Plan) -> dict[str, Taps]:
    """Taps of the layers of a plan that have a place for a bias, by node."""
    operators = {str(node.name): node for node in model.graph}
    found = {name: _taps(operators[name], graph, plan.weights[name].source) for name in plan.weights}
    return {name: taps for name, taps in found.items() if taps is not None}


def _taps(operator: ir.Node, graph: Graph, source: str) -> Taps | None:
    node, kind = graph.by_name[str(operator.name)], operator.op_type
    shape, made = graph.shapes.get(source), graph.shapes.get(node.output)
    if shape is None or made is None or node.weight is None or node.inputs[0] != source:
        return None
    attributes = operator.attributes
    if kind == "Gemm":
        plain = attributes.get_float("alpha", 1.0) == 1.0 and not attributes.get_int("transA", 0)
        return (
            Taps(source, (), 1, not attributes.get_int("transB", 0), (), 1)
            if plain and len(shape) == 2
            else None
        )
    if kind not in ("Conv", "ConvTranspose"):
        return None
    kernel, sizes, outs = node.weight.shape[2:], shape[2:], made[2:]
    count = len(kernel)
    steps = attributes.get_ints("strides", [1] * count)
    holes = attributes.get_ints("dilations", [1] * count)
    pads = _pads(operator, kernel, sizes, outs, steps, holes)
    met = _met if kind == "Conv" else _met_transposed
    meets = tuple(
        np.stack([met(tap * hole - pad, step, size, out) for tap in range(k)], axis=1)
        for k, hole, pad, step, size, out in zip(kernel, holes, pads, steps, sizes, outs, strict=True)
    )
    groups = attributes.get_int("group", 1)
    return Taps(source, sizes, groups, kind == "ConvTranspose", meets, prod(outs))


def _pads(
    operator: ir.Node, kernel: Sequence[int], sizes: Sequence[int], outs: Sequence[int], steps: Sequence[int],
    holes: Sequence[int],
) -> Sequence[int]:  # fmt: skip
    """Padding before each axis; that of SAME follows from the sizes."""
    word = operator.attributes.get_string("auto_pad", "NOTSET")
    if not word.startswith("SAME"):
        return operator.attributes.get_ints("pads", [0] * 2 * len(kernel))[: len(kernel)]
    if operator.op_type == "ConvTranspose":
        sizes, outs = outs, sizes
    whole = [
        max(0, (out - 1) * step + (k - 1) * hole + 1 - size)
        for k, size, out, step, hole in zip(kernel, sizes, outs, steps, holes, strict=True)
    ]
    return [one // 2 if word == "SAME_UPPER" else one - one // 2 for one in whole]


def _met(offset: int, step: int, size: int, out: int) -> np.ndarray:
    """float32 (size): 1 where one of the outputs reads, at its number times the step plus the offset."""
    places = offset + step * np.arange(out)
    return np.isin(np.arange(size), places).astype(np.float32)


def _met_transposed(offset: int, step: int, size: int, out: int) -> np.ndarray:
    """float32 (size): 1 where the output at the position times the step plus the offset exists."""
    places = offset + step * np.arange(size)
    return ((places >= 0) & (places < out)).astype(np.float32)


@dataclass
class InputMeans:
    """Means of what the taps of layers meet, over the first batches and over the first few of those.

    Attributes:
        taps: by node.
        few: batches that are counted apart.
        batches: that are counted; later ones are not looked at.
    """

    taps: Mapping[str, Taps]
    few: int
    batches: int
    _sums: dict[tuple[str, bool], Means] = field(default_factory=dict, repr=False)
    _counts: dict[tuple[str, bool], int] = field(default_factory=dict, repr=False)

    @property
    def empty(self) -> bool:
        """Whether no batch was taken in."""
        return not self._counts

    def add(self, batch: int, values: Mapping[str, np.ndarray]) -> None:
        """Take in what is known of a batch, if it is one of the first.

        Args:
            batch: its number, from 0.
            values: some tensors of it.
        """
        if batch >= self.batches:
            return
        for name, taps in self.taps.items():
            if taps.source not in values:
                continue
            x = values[taps.source]
            if x.shape[2:] != taps.sizes:
                continue
            sums = taps.sums(x)
            for early in (True, False) if batch < self.few else (False,):
                key = name, early
                self._sums[key] = self._sums[key] + sums if key in self._sums else sums
                self._counts[key] = self._counts.get(key, 0) + len(x) * taps.positions

    def of(self, name: str, *, early: bool) -> Means | None:
        """Means of a layer's input over all batches taken in, or the early ones; None where it has none."""
        key = name, early
        return self._sums[key] / self._counts[key] if key in self._sums else None
