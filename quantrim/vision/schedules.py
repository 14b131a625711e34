"""Learning-rate schedules: functions from the iteration to a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Factor = Callable[[int], float]


def polynomial(iterations: int, *, power: float = 0.9, end: float = 0.0, warmup: int = 0) -> Factor:
    """Factor (1 - t/T)^power down to ``end``, after a linear warm-up."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, iterations - warmup))
        return (1 - end) * (1 - share) ** power + end

    return factor


def cosine(iterations: int, *, end: float = 0.0, warmup: int = 0) -> Factor:
    """Half a cosine from 1 to ``end``, after a linear warm-up."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, iterations - warmup))
        return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2

    return factor


def piecewise(boundaries: Sequence[int], values: Sequence[float]) -> Factor:
    """``values[i]`` until iteration ``boundaries[i]``; values are factors of the base rate."""
    return lambda step: values[sum(step >= boundary for boundary in boundaries)]


def warmed(factor: Factor, warmup: int) -> Factor:
    """``factor`` behind a linear rise over the first iterations."""
    return lambda step: factor(step) * min(1.0, (step + 1) / max(1, warmup))
