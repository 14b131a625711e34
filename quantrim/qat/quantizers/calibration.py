"""The ranges that training starts from: one pass over some data, by the same sketches as PTQ."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from typing_extensions import override

from quantrim.qat.interceptor import QuantizerSet, Visitor, prepared_activation
from quantrim.qat.plan import CallSite, Read, Write
from quantrim.qat.quantizers.activations import Codes
from quantrim.ranges import Algo, Range, Sketch, range_of
from quantrim.ranges.estimators import min_max_range

#: Clipping factors tried for narrow codes. Four bits clip far more than eight, so they reach far down.
_FACTORS = np.geomspace(0.02, 1.0, 64)


class Collect(Visitor):
    """Visitor that runs the module in float and sketches every tensor that has a quantizer."""

    def __init__(self, quantizers: QuantizerSet) -> None:
        self.quantizers = quantizers
        self.sketches = {
            (g, m): Sketch() for g, count in quantizers.layout.members.items() for m in range(count)
        }

    @override
    def read(self, x: Tensor, read: Read, site: CallSite) -> Tensor:
        return self._record(x, read.group, read.member, read.tensor)

    @override
    def write(self, x: Tensor, write: Write, site: CallSite) -> Tensor:
        return self._record(x, write.group, write.member, write.tensor)

    def _record(self, x: Tensor, group: str, member: int | None, tensor: str) -> Tensor:
        if member is not None:
            prepared = prepared_activation(self.quantizers, x, group)
            self.sketches[group, member].add(prepared.detach().float().cpu().numpy(), name=tensor)
        return x


def initial_range(sketch: Sketch, algo: Algo, codes: Codes) -> Range:
    """Range to start from.

    Args:
        sketch: statistics of the tensor.
        algo: estimator; those that minimise an error are asked for the codes at hand.
        codes: the integers to round to.
    """
    symmetric = not codes.affine and codes.low < 0
    eight_bits = codes.high - codes.low == 255
    if eight_bits or algo in ("min_max", "abs_max", "avg", "hist"):
        return range_of(sketch, algo, symmetric=symmetric)
    return narrow_range(sketch, codes)


def narrow_range(sketch: Sketch, codes: Codes) -> Range:
    """Range with the smallest mean squared error for codes of any width: best common clipping factor."""
    values, weights = sketch.values()
    whole = min_max_range(sketch)
    if whole.low == whole.high:
        return whole
    errors = []
    for factor in _FACTORS:
        low, high = whole.low * factor, whole.high * factor
        if codes.affine:
            scale = (high - low) / (codes.high - codes.low)
            first = codes.low - np.clip(np.rint(codes.low - low / scale), codes.low, codes.high)
        else:
            scale, first = max(high, -low) / codes.high, 0 if codes.non_negative else codes.low
        last = first + (codes.high - codes.low) if codes.affine else codes.high
        rounded = np.clip(np.rint(values / scale), first, last) * scale
        errors.append(float((np.square(values - rounded) * weights).sum()))
    best = float(_FACTORS[int(np.argmin(errors))])
    return Range(whole.low * best, whole.high * best)
