"""One-pass, mergeable statistics of a tensor in constant memory.

A value's upper 16 bits as float32 are its bfloat16 code (truncated): sign, 8 exponent bits, 7 mantissa
bits. A sketch counts the codes, so it needs no range known beforehand, never re-bins, and two sketches
add. Resolution is relative: a code covers less than 1 % of the value it stands for. Exact extremes are
kept beside the counters, since the range estimators that don't clip need them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from quantrim.errors import DataError

CODES = 65_536
#: A sample of a tensor with more values than this is counted on an even stride of its values.
MAX_COUNTED = 16_384
#: Codes that wait to be counted together; one pass over the 65,536 counters serves them all.
_PENDING = 262_144
#: Values whose minimum and maximum are taken together, so that the second pass reads from cache.
_CHUNK = 65_536

Counts = npt.NDArray[np.int64]


@dataclass
class Sketch:
    """Statistics of one tensor over every batch seen so far.

    Attributes:
        low: smallest value seen, float.
        high: largest value seen, float.
        abs_max_sum: sum over samples of max |x|, for the "avg" estimator.
        samples: how many samples (first-axis entries) were seen.
    """

    low: float = np.inf
    high: float = -np.inf
    abs_max_sum: float = 0.0
    samples: int = 0
    _counts: Counts = field(default_factory=lambda: np.zeros(CODES, np.int64), repr=False)
    _pending: list[npt.NDArray[np.uint16]] = field(default_factory=list, repr=False)

    @property
    def counts(self) -> Counts:
        """int64[65536], how often each bfloat16 code was seen (in the counted sub-sample)."""
        if self._pending:
            self._counts += np.bincount(np.concatenate(self._pending), minlength=CODES)
            self._pending.clear()
        return self._counts

    def add(self, values: np.ndarray, *, name: str = "tensor") -> None:
        """Take one batch in.

        Args:
            values: float32, any shape; the first axis counts samples. Empty arrays are ignored.
            name: tensor name for the error message.

        Raises:
            DataError: a value is NaN or infinite.
        """
        if values.size == 0:
            return
        values = np.ascontiguousarray(values, np.float32)
        for row in values.reshape(values.shape[0] if values.ndim > 1 else 1, -1):
            low, high = _extremes(row)
            if not (np.isfinite(low) and np.isfinite(high)):
                raise DataError(
                    f"{name!r} holds NaN or infinite values during calibration. Check the calibration data "
                    "and the model's weights."
                )
            self.low, self.high = min(self.low, low), max(self.high, high)
            self.abs_max_sum += max(-low, high)
            self.samples += 1
            self._pending.append(_codes(row))
        if sum(codes.size for codes in self._pending) > _PENDING:
            _ = self.counts

    @classmethod
    def from_counts(cls, codes: np.ndarray, counts: np.ndarray) -> Sketch:
        """Sketch of given counters, without extremes and samples.

        Args:
            codes: uint16[n], bfloat16 codes, each once.
            counts: int64[n], how often each was seen.
        """
        sketch = cls()
        sketch._counts[codes] = counts
        return sketch

    def merge(self, other: Sketch) -> Sketch:
        """Sketch of both data sets together."""
        return Sketch(
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            abs_max_sum=self.abs_max_sum + other.abs_max_sum,
            samples=self.samples + other.samples,
            _counts=self.counts + other.counts,
        )

    def values(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The sketch as weighted points, sorted by value.

        Returns:
            (values, weights): float64 arrays of the codes seen, each code's middle clamped to the exact
            extremes, and its count.

        Raises:
            DataError: nothing was recorded.
        """
        if self.samples == 0:
            raise DataError("no value was recorded for this tensor; calibration saw no sample.")
        order, middles = _sorted_codes()
        counts = self.counts[order]
        seen = np.flatnonzero(counts)
        return np.clip(middles[seen], self.low, self.high), counts[seen].astype(np.float64)


def _extremes(row: np.ndarray) -> tuple[float, float]:
    """Exact minimum and maximum of a row; NaN when it holds one."""
    starts = range(0, row.size, _CHUNK)
    pairs = [(row[i : i + _CHUNK].min(), row[i : i + _CHUNK].max()) for i in starts]
    lows, highs = zip(*pairs, strict=True)
    return float(np.min(lows)), float(np.max(highs))


def _codes(row: np.ndarray) -> npt.NDArray[np.uint16]:
    """bfloat16 codes of a contiguous float32 row, copied; an even stride of it when it is long.

    The stride is odd, so that it doesn't fall in step with image widths, which are mostly even.
    """
    codes = row.view(np.uint16)[1::2]
    stride = (row.size // MAX_COUNTED) | 1 if row.size > MAX_COUNTED else 1
    return codes[::stride].copy()


@lru_cache(maxsize=1)
def _sorted_codes() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Finite codes in order of value, and the middle of the interval of float32 each stands for."""
    codes = np.arange(CODES, dtype=np.uint32)
    codes = codes[(codes & 0x7F80) != 0x7F80]  # without infinities and NaNs
    edge = (codes << 16).view(np.float32).astype(np.float64)
    far = ((codes << 16) | 0xFFFF).view(np.float32).astype(np.float64)
    middle = np.where(edge == 0, 0.0, (edge + far) / 2)  # zero stays zero: post-ReLU tensors are full of it
    order = np.argsort(middle, kind="stable")
    return codes.astype(np.int64)[order], middle[order]
