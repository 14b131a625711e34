"""Multiply-accumulates and parameters as exact functions of the units kept in each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quantrim.pruning.groups.groups import ChannelGraph
from quantrim.pruning.groups.slots import ChannelIds
from quantrim.pruning.groups.values import GraphCall, Value

#: Units kept in each group, int64[groups] or [choices, groups].
Kept = NDArray[np.int64]

#: One size of a product: a number, or the channels of a dimension.
Factor = int | ChannelIds


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes of channel dimensions as linear functions of the units kept.

    Attributes:
        fixed: frozen channels of each dimension, float64[dimensions].
        per_unit: channels that a kept unit adds, float64[dimensions, groups].
    """

    fixed: NDArray[np.float64]
    per_unit: NDArray[np.float64]

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """Sizes, float64[..., dimensions]."""
        return self.fixed + np.asarray(kept, dtype=np.float64) @ self.per_unit.T


class WidthTable:
    """Collects dimensions, each once, and makes :class:`Widths` of them."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._rows: dict[bytes, int] = {}
        self._fixed: list[float] = []
        self._per_unit: list[NDArray[np.float64]] = []

    def add(self, slots: ChannelIds) -> int:
        """Row of a dimension."""
        key = slots.tobytes()
        if key not in self._rows:
            self._rows[key] = len(self._rows)
            groups = self.graph.group_of_slot[slots]
            units = np.array([group.units for group in self.graph.groups], dtype=np.float64)
            counts = np.bincount(groups[groups >= 0], minlength=len(units))
            self._fixed.append(float((groups < 0).sum()))
            self._per_unit.append(counts / units if len(units) else counts.astype(np.float64))
        return self._rows[key]

    def widths(self) -> Widths:
        """Of all rows added so far."""
        groups = len(self.graph.groups)
        return Widths(np.array(self._fixed), np.array(self._per_unit).reshape(len(self._per_unit), groups))


@dataclass(frozen=True, slots=True)
class CostModel:
    """Sum of products of channel numbers.

    Attributes:
        widths: of all channel dimensions; the last is always 1, and fills products up.
        constants: what else multiplies each product, float64[products].
        factors: rows of ``widths``, int64[products, most factors].
        full: units of each group when nothing is pruned.
    """

    widths: Widths
    constants: NDArray[np.float64]
    factors: NDArray[np.int64]
    full: Kept

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """Cost with these units kept, float64[...]."""
        return np.asarray(self.widths(kept)[..., self.factors].prod(axis=-1) @ self.constants)


def macs_model(graph: ChannelGraph) -> CostModel:
    """Multiply-accumulates of convolutions and matrix products on the example inputs, in evaluation."""
    products = (
        [*factors, *graph.blocks_around(call.layer)] for call, _ in graph.calls for factors in products_of(call)
    )
    return _model(graph, list(products))


def _model(graph: ChannelGraph, products: Sequence[Sequence[Factor]]) -> CostModel:
    table = WidthTable(graph)
    rows = [[table.add(factor) for factor in one if not isinstance(factor, int)] for one in products]
    constants = [math.prod(factor for factor in one if isinstance(factor, int)) for one in products]
    widths = table.widths()
    padded = Widths(np.append(widths.fixed, 1.0), np.vstack([widths.per_unit, np.zeros(len(graph.groups))]))
    most = max(map(len, rows), default=1)
    one = len(widths.fixed)
    factors = np.array([row + [one] * (most - len(row)) for row in rows], dtype=np.int64).reshape(-1, most)
    return CostModel(padded, np.array(constants, dtype=np.float64), factors, full_widths(graph))


def full_widths(graph: ChannelGraph) -> Kept:
    """Units of each group when nothing is pruned."""
    return np.array([group.units for group in graph.groups], dtype=np.int64)


def products_of(call: GraphCall) -> Iterator[list[Factor]]:
    """Products of sizes whose sum is the multiply-accumulates of a call."""
    name, weight = call.name, call.tensor("weight")
    if name.startswith("conv") and weight is not None:
        transposed = "transpose" in name or call.arguments.get("transposed") is True
        shape = call.input().shape if transposed else call.shapes[0]
        spatial = shape[-(len(weight.shape) - 2) :]
        batch = shape[0] if len(shape) == len(weight.shape) else 1
        yield [batch, *spatial, *weight.shape[2:], *_factors(weight, (0, 1))]
    elif name == "linear" and weight is not None:
        yield [*_factors(call.input(), range(-len(call.shapes[0]), -1)), *_factors(weight, (0, 1))]
    elif name in ("matmul", "mm", "bmm"):
        first, second = list(call.tensors())[:2]
        if min(len(first.shape), len(second.shape)) > 1:
            lead = max((first, second), key=lambda value: len(value.shape))
            yield [
                *_factors(lead, range(len(lead.shape) - 2)),
                *_factors(first, (-2, -1)),
                *_factors(second, (-1,)),
            ]
    elif name == "einsum":
        yield _letters(call)
    elif name == "scaled_dot_product_attention":
        query, key, value = (call.arguments[one] for one in ("query", "key", "value"))
        lead_and_rows = _factors(query, range(len(query.shape) - 1))
        yield [*lead_and_rows, *_factors(key, (-2, -1))]
        yield [*lead_and_rows, *_factors(value, (-2, -1))]


def _letters(call: GraphCall) -> list[Factor]:
    """Sizes of all letters of an einsum, each once; none where it multiplies nothing."""
    terms = str(call.arguments["equation"]).replace(" ", "").partition("->")[0].split(",")
    values = list(call.tensors())
    if len(values) < 2 or "." in "".join(terms):
        return [0]
    sizes: dict[str, Factor] = {}
    for term, value in zip(terms, values, strict=True):
        sizes |= dict(zip(term, _factors(value, range(len(term))), strict=True))
    return list(sizes.values())


def _factors(value: Value, axes: Sequence[int]) -> list[Factor]:
    pairs = [(value.dims[axis], value.shape[axis]) for axis in axes]
    return [size if slots is None else slots for slots, size in pairs]


def parameter_count(module: nn.Module) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
