"""Numerical distances between what two models answer, sample by sample: no loud sample may own a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Decibel of equal outputs, which have no noise; and of an output of which nothing is left, below zero.
MOST_DB = 200.0
#: A sample whose answer is weaker than this share of the others' has no signal of its own to lose.
_SILENT = 1e-6
#: Resamples of a bootstrap, and the quantiles between which 95 % of them lie.
_RESAMPLES, _BETWEEN = 400, (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Distances:
    """Sums of squares of each sample, float64 (N,).

    Attributes:
        signal: of the float model's values.
        noise: of the differences; infinite where the other model gives NaN or infinity in place of a number.
        power: of the other model's values.
        product: of both.
    """

    signal: np.ndarray
    noise: np.ndarray
    power: np.ndarray
    product: np.ndarray

    @staticmethod
    def of(expected: np.ndarray, got: np.ndarray) -> Distances:
        """Distances of a batch; the first axis of both counts samples.

        Values that are the same in both, infinite ones too, make no noise; those that are not finite in the
        float model carry no signal either.
        """
        rows = [_sums(np.ravel(e), np.ravel(g)) for e, g in zip(expected, got, strict=True)]
        return Distances(*np.array(rows, np.float64).reshape(-1, 4).T)

    @staticmethod
    def joined(parts: Sequence[Distances]) -> Distances:
        """Those of several batches."""
        names = ("signal", "noise", "power", "product")
        return Distances(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def sqnr_db(self) -> np.ndarray:
        """Signal to quantization noise of each sample, decibel, float64 (N,) between -200 and 200."""
        signal = np.maximum(self.signal, _SILENT * np.median(self.signal)) if len(self.signal) else self.signal
        signal_log, noise_log = (np.log10(np.maximum(one, 1e-300)) for one in (signal, self.noise))
        return np.where(self.noise == 0, MOST_DB, np.clip(10 * (signal_log - noise_log), -MOST_DB, MOST_DB))

    @property
    def cosine(self) -> np.ndarray:
        """Cosine of each sample's two answers; 1 where both are the same, 0 where one alone is zero."""
        norms = np.sqrt(self.signal) * np.sqrt(self.power)
        cosine = np.divide(self.product, norms, out=np.zeros_like(norms), where=norms > 0)
        return np.where(self.noise == 0, 1.0, np.clip(np.nan_to_num(cosine), -1.0, 1.0))

    @property
    def relative_error(self) -> np.ndarray:
        """L2 norm of each sample's difference over that of its answer; 10 to the power of -SQNR/20."""
        return np.asarray(10 ** (-self.sqnr_db / 20) * (self.noise > 0))


def _sums(expected: np.ndarray, got: np.ndarray) -> tuple[float, float, float, float]:
    e, g = expected.astype(np.float64), got.astype(np.float64)
    if not (np.isfinite(e).all() and np.isfinite(g).all()):
        same = (e == g) | (np.isnan(e) & np.isnan(g))
        lost = not same.all() and not np.isfinite(g[~same]).all()
        known = np.isfinite(e) & np.isfinite(g)
        e, g = e[known], g[known]
        if lost:
            return float(np.dot(e, e)), float("inf"), 0.0, 0.0
    with np.errstate(over="ignore"):
        return float(np.dot(e, e)), float(np.square(e - g).sum()), float(np.dot(g, g)), float(np.dot(e, g))


def worst_decile(values: np.ndarray, *, high_is_good: bool = True) -> float:
    """The value that nine samples in ten reach, one that was really seen."""
    if high_is_good:
        return float(np.percentile(values, 10, method="lower"))
    return float(np.percentile(values, 90, method="higher"))


def wilson(hits: float, count: int) -> tuple[float, float]:
    """95 % interval of a share.

    Args:
        hits: how many of them, or the sum of their shares.
        count: of how many independent ones; at least 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22 (1927).
    """
    z = 1.959964
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def bootstrap_mean(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over samples, by resampling them with a fixed seed."""
    if len(values) < 2:
        return float(values.min(initial=0.0)), float(values.max(initial=1.0))
    drawn = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), _BETWEEN)
    return float(low), float(high)
