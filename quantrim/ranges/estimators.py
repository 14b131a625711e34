"""From a sketch to the range that is quantized: pure functions, all of the same shape.

Every estimator takes a sketch and the number of quantization levels on its wider side and returns the
range worth keeping. Estimators of the abs-max family work on |x|, as the tools they come from do: their
threshold t clips the values to [-t, t], and the range is what the tensor really occupies inside it. A
tensor that is never negative so keeps [0, t] and all 256 codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from quantrim.errors import ConfigError, did_you_mean
from quantrim.ranges.sketch import CODES, Sketch

Algo = Literal["abs_max", "min_max", "avg", "hist", "kl", "mse", "emd"]
Floats = npt.NDArray[np.float64]

#: Smallest share of max |x| that the KL search may keep.
KL_START = 0.5
#: Bins of the linear histogram that the KL search works on, as in the method's first description.
KL_BINS = 2048
#: Share of the values that "hist" keeps on default (PaddleSlim's hist_percent).
HIST_PERCENT = 0.99999
#: Clipping factors tried by MSE and EMD; the unclipped range is one of them.
_FACTORS = np.linspace(0.3, 1.0, 71)


@dataclass(frozen=True, slots=True)
class Range:
    """Closed interval of real values that the codes cover.

    Attributes:
        low: lower end, at most 0.
        high: upper end, at least 0.
    """

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """Smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


def range_of(sketch: Sketch, algo: Algo, *, symmetric: bool, hist_percent: float = HIST_PERCENT) -> Range:
    """Range of a tensor by one of the named methods.

    Args:
        sketch: statistics of the tensor; at least one sample.
        algo: abs_max, min_max, avg, hist, kl, mse or emd.
        symmetric: the codes are -127..127 around zero; else 0..255 with a zero point.
        hist_percent: share of the values that "hist" keeps, in (0, 1].

    Returns:
        Range that contains zero.

    Raises:
        ConfigError: unknown method, or hist_percent out of (0, 1].
        DataError: the sketch is empty.
    """
    if algo not in ESTIMATORS:
        raise ConfigError(f"unknown calibration algorithm {algo!r}{did_you_mean(algo, ESTIMATORS)}")
    if algo == "hist":
        return percentile_range(sketch, hist_percent)
    return ESTIMATORS[algo](sketch, symmetric)


def min_max_range(sketch: Sketch, symmetric: bool = False) -> Range:
    """Everything that was seen, widened to hold zero."""
    sketch.values()  # an empty sketch has no extremes
    return Range(min(sketch.low, 0.0), max(sketch.high, 0.0))


def abs_max_range(sketch: Sketch, symmetric: bool = False) -> Range:
    """Threshold max |x|: the same as min-max within the values that occur."""
    return min_max_range(sketch)


def avg_range(sketch: Sketch, symmetric: bool = False) -> Range:
    """Threshold: mean over samples of each sample's max |x|."""
    whole = min_max_range(sketch)
    return _clipped(whole, sketch.abs_max_sum / sketch.samples)


def percentile_range(sketch: Sketch, percent: float = HIST_PERCENT) -> Range:
    """Threshold: the smallest |x| that at least ``percent`` of the values don't exceed.

    Raises:
        ConfigError: percent is not in (0, 1].
    """
    if not 0 < percent <= 1:
        raise ConfigError(f"hist_percent is {percent}; it must be in (0, 1], e.g. 0.9999.")
    values, weights = sketch.values()
    if percent == 1:
        return min_max_range(sketch)
    order = np.argsort(np.abs(values), kind="stable")
    covered = np.cumsum(weights[order])
    first = int(np.searchsorted(covered, percent * covered[-1]))
    return _clipped(min_max_range(sketch), float(np.abs(values[order])[min(first, len(values) - 1)]))


def kl_range(sketch: Sketch, symmetric: bool = False) -> Range:
    """Threshold with the smallest KL divergence between the values and their quantized form.

    The method of NVIDIA's "8-bit inference with TensorRT" (2017): for each threshold, P is the clipped
    histogram of |x| with the outliers in its last bin, Q the histogram merged into as many levels as
    there are codes and spread over its non-empty bins. Exact zeros are left out, since every scale
    represents them, and so is any threshold below half of max |x|, as in Paddle: the divergence does not
    see how far a clipped value falls, and on a tensor with most of its mass near zero it would clip
    nearly everything. Levels: 127 for a signed tensor; 255 for one that
    is never negative, where all 256 codes lie on one side (the original uses one number for both).
    """
    whole = min_max_range(sketch)
    signed = symmetric or whole.low < 0
    threshold = kl_threshold(abs_histogram(sketch), 127 if signed else 255, int(KL_START * KL_BINS))
    return _clipped(whole, threshold * max(-whole.low, whole.high) / KL_BINS)


def abs_histogram(sketch: Sketch, bins: int = KL_BINS) -> Floats:
    """Histogram of |x| without exact zeros, ``bins`` equal bins over [0, max |x|], float64.

    A bfloat16 code is wider than a bin near the top, so its count is spread evenly over its interval;
    counting middles instead would leave a comb of empty bins.
    """
    magnitudes = sketch.counts[: CODES // 2] + sketch.counts[CODES // 2 :]
    magnitudes[0] = 0
    edges = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    top = max(-min(sketch.low, 0.0), max(sketch.high, 0.0))
    if top == 0:
        return np.zeros(bins)
    last = int(np.searchsorted(edges, top, side="left"))
    grid = np.append(edges[:last], top)
    cumulative = np.append(0.0, np.cumsum(magnitudes[:last], dtype=np.float64))
    return np.diff(np.interp(np.linspace(0.0, top, bins + 1), grid, cumulative))


def kl_threshold(histogram: Floats, levels: int, start: int = 0) -> float:
    """Number of bins to keep, by the smallest KL divergence; vectorised with prefix sums.

    With S the mass and n the number of non-empty bins of each level, KL(P|Q) is
    sum(p log p) - sum over levels of S log(S / n), plus the normalisation, so each threshold costs
    O(levels) instead of O(bins).

    Args:
        histogram: float64[bins], non-negative.
        levels: codes on the positive side.
        start: smallest number of bins to keep; at least ``levels`` are kept anyhow.

    Returns:
        i + 0.5 for the best i, the middle of the last bin kept; ``bins`` if nothing was counted.
    """
    bins = histogram.size
    total = float(histogram.sum())
    if total == 0 or bins <= levels:
        return float(bins)
    log_mass = _prefix(np.where(histogram > 0, histogram * np.log(np.maximum(histogram, 1e-300)), 0.0))
    mass, filled = _prefix(histogram), _prefix((histogram > 0).astype(np.float64))
    keeps = np.arange(max(levels, start), bins + 1)
    best, best_divergence = float(bins), np.inf
    for chunk in np.array_split(keeps, max(1, keeps.size // 256)):
        divergence = _divergences(histogram, chunk, levels, total, log_mass, mass, filled)
        index = int(np.argmin(divergence))
        if divergence[index] < best_divergence:
            best_divergence = float(divergence[index])
            best = min(float(chunk[index]) + 0.5, float(bins))
    return best


def _divergences(
    histogram: Floats,
    keeps: npt.NDArray[np.int64],
    levels: int,
    total: float,
    log_mass: Floats,
    mass: Floats,
    filled: Floats,
) -> Floats:
    """KL divergence for each number of kept bins; infinite where outliers fall on an empty bin of Q."""
    bounds = keeps[:, None] * np.arange(levels + 1)[None, :] // levels
    group_mass = np.diff(mass[bounds], axis=1)
    group_filled = np.maximum(np.diff(filled[bounds], axis=1), 1.0)
    kept = mass[keeps]
    with np.errstate(divide="ignore", invalid="ignore"):
        group_log = np.log(group_mass / group_filled)
        inner = np.where(group_mass > 0, group_mass * group_log, 0.0).sum(axis=1)
        last, outliers = histogram[keeps - 1], total - kept
        last_log = np.where(last > 0, np.log(np.maximum(last, 1e-300)), 0.0)
        p_last = last + outliers
        p_log = log_mass[keeps] - last * last_log + np.where(p_last > 0, p_last * np.log(p_last), 0.0)
        q_last = np.where(last > 0, group_log[:, -1], -np.inf)
        cross = inner + np.where(outliers > 0, outliers * q_last, 0.0)
        divergence = (p_log - cross) / total + np.log(kept / total)
    return np.where(np.isfinite(divergence), divergence, np.inf)


def mse_range(sketch: Sketch, symmetric: bool = False) -> Range:
    """Range with the smallest mean squared quantization error."""
    return _searched(sketch, symmetric, np.square)


def emd_range(sketch: Sketch, symmetric: bool = False) -> Range:
    """Range with the smallest earth mover's distance between the values and their quantized form.

    Quantization never swaps two values, so in one dimension the optimal transport moves each value to
    its own code, and the distance is the mean absolute error.
    """
    return _searched(sketch, symmetric, np.abs)


def _searched(sketch: Sketch, symmetric: bool, loss: Callable[[Any], Any]) -> Range:
    """Best clipping of both ends together, then of each end by itself (affine codes only)."""
    values, weights = sketch.values()
    whole = min_max_range(sketch)
    if whole.low == whole.high:
        return whole
    lows, highs = whole.low * _FACTORS, whole.high * _FACTORS
    best = _argmin(values, weights, lows, highs, symmetric, loss)
    if symmetric or whole.low == 0 or whole.high == 0:
        return best
    best = _argmin(values, weights, lows, np.full_like(lows, best.high), symmetric, loss)
    return _argmin(values, weights, np.full_like(highs, best.low), highs, symmetric, loss)


def _argmin(
    values: Floats,
    weights: Floats,
    lows: Floats,
    highs: Floats,
    symmetric: bool,
    loss: Callable[[Any], Any],
) -> Range:
    errors = [
        float((loss(values - requantized(values, Range(low, high), symmetric)) * weights).sum())
        for low, high in zip(lows, highs, strict=True)
    ]
    index = int(np.argmin(errors))
    return Range(float(lows[index]), float(highs[index]))


def requantized(values: Floats, kept: Range, symmetric: bool) -> Floats:
    """Values after quantization to 8 bits and back, in float64."""
    if symmetric:
        scale = max(-kept.low, kept.high) / 127
        return np.clip(np.rint(values / scale), -127, 127) * scale
    scale = (kept.high - kept.low) / 255
    zero_point = np.rint(-kept.low / scale)
    return (np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point) * scale


def _clipped(whole: Range, threshold: float) -> Range:
    return Range(max(whole.low, -threshold), min(whole.high, threshold))


def _prefix(values: Floats) -> Floats:
    return np.append(0.0, np.cumsum(values))


ESTIMATORS: dict[str, Callable[[Sketch, bool], Range]] = {
    "abs_max": abs_max_range,
    "min_max": min_max_range,
    "avg": avg_range,
    "hist": lambda sketch, symmetric: percentile_range(sketch),
    "kl": kl_range,
    "mse": mse_range,
    "emd": emd_range,
}
