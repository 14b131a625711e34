"""Calibration samples that would spoil a file, found before the file is made: constant ones, outliers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantrim.errors import DataError
from quantrim.graph.ports import Feed, samples_in

#: A sample whose largest value is so many times what is usual for the data is an outlier; whole values of
#: another unit, such as 0..255 among -1..1, show in its own usual value already.
_PEAK, _UNIT = 1000.0, 30.0
#: Whole numbers up to 255, and more than a few of them, are pixels that nobody has normalised.
_PIXELS = (16, 255)
#: Values of a sample that are looked at, at most.
_LOOKED_AT = 65_536


@dataclass(frozen=True, slots=True)
class _Look:
    """What one sample of one input is like.

    Attributes:
        usual: 99th percentile of the magnitudes that are not zero.
        peak: the largest magnitude.
        flat: all values are the same.
        pixels: all values are whole numbers in 0..255.
    """

    usual: float
    peak: float
    flat: bool
    pixels: bool

    @staticmethod
    def at(sample: np.ndarray) -> _Look:
        flat = bool(sample.size and (sample == sample.flat[0]).all())
        if not np.issubdtype(sample.dtype, np.floating):  # integers have the range of their type
            return _Look(0.0, 0.0, flat, pixels=False)
        values = np.abs(np.ravel(sample).astype(np.float32))
        looked = values[:: max(1, values.size // _LOOKED_AT)]
        some = looked[looked > 0]
        peak = float(values.max(initial=0.0))
        whole = bool((sample >= 0).all() and (looked == np.rint(looked)).all())
        pixels = whole and _PIXELS[0] < peak <= _PIXELS[1]
        return _Look(float(np.percentile(some, 99)) if some.size else 0.0, peak, flat, pixels)


class Samples:
    """Looks at calibration batches before they are used, and leaves outliers out.

    Args:
        first: the first few batches, by which the others are measured.
        keep_outliers: take every sample as it is.

    Raises:
        DataError: the first batches do not vary at all, or most of their samples are outliers.
    """

    def __init__(self, first: Sequence[Feed], *, keep_outliers: bool = False) -> None:
        self.keep_outliers = keep_outliers
        self._left_out: list[str] = []
        self._pixels: set[str] = set()
        samples = [sample for feed in first for sample in _rows(feed)]
        looks = [_looks(sample) for sample in samples]
        _require_variation(samples, looks)
        names = looks[0] if looks else {}
        self._usual = {name: float(np.median([one[name].usual for one in looks])) for name in names}
        for name in names:
            kinds = [one[name] for one in looks if not one[name].flat]
            if kinds and all(one.pixels for one in kinds):
                self._pixels.add(name)
        self._require_few_outliers(looks)

    def _require_few_outliers(self, looks: Sequence[Mapping[str, _Look]]) -> None:
        found = [(index, why) for index, look in enumerate(looks) if (why := self._fault(look))]
        if self.keep_outliers or 2 * len(found) <= len(looks):
            return
        index, why = found[0]
        raise DataError(
            f"{len(found)} of the first {len(looks)} calibration samples hold outliers; sample {index}: {why}. "
            "Mend the data; or, if such values are real, set keep_outliers and expect the rest to be lost.",
            field="keep_outliers",
        )

    def _fault(self, look: Mapping[str, _Look]) -> str:
        """Why a sample is an outlier; "" where it is none."""
        for name, one in look.items():
            usual = self._usual.get(name, 0.0)
            if usual <= 0 or (one.peak <= _PEAK * usual and one.usual <= _UNIT * usual):
                continue
            return f"input {name!r} reaches {one.peak:.3g} where {usual:.3g} is usual"
        return ""

    def good(self, feeds: Iterator[Feed], *, told: bool = True) -> Iterator[Feed]:
        """The batches without outliers; a good sample of the same batch takes their place.

        Args:
            feeds: batches.
            told: what is left out is told by the notes.
        """
        start = 0
        for feed in feeds:
            rows = _rows(feed)
            faults = ["" if self.keep_outliers else self._fault(_looks(row)) for row in rows]
            if told:
                self._left_out += [f"sample {start + i}: {why}" for i, why in enumerate(faults) if why]
            start += len(rows)
            kept = [i for i, why in enumerate(faults) if not why]
            if len(kept) == len(rows):
                yield feed
            elif kept:
                instead = kept + kept[:1] * (len(rows) - len(kept))
                yield {name: a[instead] if _counts(a, rows) else a for name, a in feed.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the data; empty where nothing is strange."""
        notes = []
        if self._left_out:
            count = len(self._left_out)
            notes.append(
                f"{count} calibration sample{'s were' if count > 1 else ' was'} left out as outlier"
                f"{'s' if count > 1 else ''} ({self._left_out[0]})."
            )
        notes += [
            f"Input {name!r} holds whole numbers up to 255: right only if the model normalises them itself."
            for name in sorted(self._pixels)
        ]
        return tuple(notes)


def _rows(feed: Feed) -> list[dict[str, np.ndarray]]:
    """The samples of a batch, by input; inputs that don't count samples are left away."""
    size = samples_in(feed)
    return [
        {name: array[i] for name, array in feed.items() if np.ndim(array) and len(array) == size}
        for i in range(size)
    ]


def _counts(array: np.ndarray, rows: Sequence[object]) -> bool:
    return bool(np.ndim(array)) and len(array) == len(rows)


def _looks(sample: Mapping[str, np.ndarray]) -> dict[str, _Look]:
    return {name: _Look.at(np.asarray(row)) for name, row in sample.items()}


def _require_variation(
    samples: Sequence[Mapping[str, np.ndarray]], looks: Sequence[Mapping[str, _Look]]
) -> None:
    """Raise DataError where no input varies: not over the samples, or, of images, not within any of them."""
    told = []
    for name, first in (samples[0] if samples else {}).items():
        if not all(one[name].flat for one in looks):
            return
        values = {float(np.ravel(one[name])[0]) for one in samples if np.size(one[name])}
        if len(values) == 1 and len(samples) > 1:
            told.append(f"input {name!r} is {values.pop():g} everywhere in the first {len(samples)} samples")
        elif np.ndim(first) > 1 and values:
            told.append(f"input {name!r} is constant in each of the first {len(samples)} samples")
        else:
            return
    if told:
        raise DataError(
            f"calibration data without variation: {told[0]}. Give samples like those of deployment."
        )
