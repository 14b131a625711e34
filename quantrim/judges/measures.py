"""How answers are read and compared for each task: classes, maps of classes, strings, boxes.

A measure reads what counts of a batch's answers, which is small and may be kept; pairs two readings of the same
batch, sample by sample; and scores all pairs, 0..1, higher is better, with a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from quantrim.detection import Decoder, Detections, Thresholds, box_fidelity, detect
from quantrim.errors import ModelError
from quantrim.judges.bars import Task
from quantrim.judges.distances import Distances, bootstrap_mean, wilson

#: A user's own decoder: (outputs, batch first; height and width of the canvas) → detections of each image.
DecodeBoxes = Callable[[Sequence[np.ndarray], tuple[int, int]], Sequence[Detections]]
#: Classes that cover less than this share of the float model's map are too rare to be counted alone.
_RARE = 1e-3
#: Resamples of images for the interval of AP, each of which matches all boxes again.
_BOX_RESAMPLES = 40


@dataclass(frozen=True, slots=True)
class Score:
    """Figure of a task.

    Attributes:
        task: how the outputs were read.
        name: of the figure, for people: "same class as FP32".
        outputs: names of the outputs that were read.
        value: 0..1, higher is better.
        low: lower end of the 95 % interval.
        high: its upper end.
        samples: how many were compared.
        figures: more of the same comparison, by name.
    """

    task: Task
    name: str
    outputs: tuple[str, ...]
    value: float
    low: float
    high: float
    samples: int
    figures: Mapping[str, float] = field(default_factory=dict)


class Measure(Protocol):
    """See the module."""

    @property
    def task(self) -> Task:
        """That it is for."""
        ...

    @property
    def name(self) -> str:
        """Of its figure, for people."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that it reads."""
        ...

    def read(self, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None) -> Any:
        """What counts of a batch's answers."""
        ...

    def pair(self, wanted: Any, found: Any) -> list[Any]:
        """One record a sample of two readings of the same batch."""
        ...

    def score(self, pairs: Sequence[Any]) -> Score:
        """Of all records; at least one."""
        ...


def smallest_integers(values: np.ndarray) -> np.ndarray:
    """The same integers in the smallest type that holds them: maps of large images are kept whole."""
    low, high = (np.min_scalar_type(int(value)) for value in (values.min(initial=0), values.max(initial=0)))
    return values.astype(np.promote_types(low, high))


def _classes(answer: np.ndarray, axis: int | None) -> np.ndarray:
    """Classes, integers (N, ...), of scores along an axis, or of an answer that gives them itself."""
    classes = answer if axis is None else np.nan_to_num(answer).argmax(axis=axis)
    return smallest_integers(classes.reshape(len(classes), -1))


@dataclass(frozen=True, slots=True)
class ClassMeasure:
    """Share of samples of the same class.

    Attributes:
        output: name of the output.
        axis: its axis that counts classes; None where the file gives the classes themselves.
    """

    output: str
    axis: int | None
    task: Task = "classification"
    name: str = "same class as FP32"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The one output."""
        return (self.output,)

    def read(self, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None) -> np.ndarray:
        """Classes, integers (N, ...)."""
        return _classes(answers[self.output], self.axis)

    def pair(self, wanted: np.ndarray, found: np.ndarray) -> list[float]:
        """Share of each sample's classes that are the same."""
        return [float(np.mean(w == f)) for w, f in zip(wanted, found, strict=True)]

    def score(self, pairs: Sequence[float]) -> Score:
        """Mean share; Wilson's interval."""
        value, count = float(np.mean(pairs)), len(pairs)
        return Score(self.task, self.name, self.outputs, value, *wilson(sum(pairs), count), count)


@dataclass(frozen=True, slots=True)
class MapMeasure:
    """Mean intersection over union with the float model's map of classes; rare classes are left out.

    Attributes are those of :class:`ClassMeasure`.
    """

    output: str
    axis: int | None
    task: Task = "segmentation"
    name: str = "mIoU with FP32's map"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The one output."""
        return (self.output,)

    def read(self, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None) -> np.ndarray:
        """Classes, integers (N, pixels)."""
        return _classes(answers[self.output], self.axis)

    def pair(self, wanted: np.ndarray, found: np.ndarray) -> list[np.ndarray]:
        """Of each sample: (3, C) pixels of each class in both maps, in the first, in the second."""
        low = min(0, int(wanted.min(initial=0)), int(found.min(initial=0)))  # a class for "none" may be -1
        size = max(int(wanted.max(initial=0)), int(found.max(initial=0))) - low + 1
        counted = []
        for w, f in zip(wanted.astype(np.int64) - low, found.astype(np.int64) - low, strict=True):
            both = np.bincount(w[w == f], minlength=size)
            counted.append(np.stack([both, np.bincount(w, minlength=size), np.bincount(f, minlength=size)]))
        return counted

    def score(self, pairs: Sequence[np.ndarray]) -> Score:
        """Mean over the classes of all samples; bootstrap of the samples' own means for the interval."""
        size = max(pair.shape[1] for pair in pairs)
        padded = [np.pad(pair, ((0, 0), (0, size - pair.shape[1]))) for pair in pairs]
        each = np.array([_mean_iou(pair) for pair in padded])
        whole = np.sum(padded, axis=0)
        value = _mean_iou(whole)
        low, high = bootstrap_mean(each)
        figures = {"pixels_same": float(whole[0].sum() / max(whole[1].sum(), 1))}
        return Score(
            self.task, self.name, self.outputs, value, min(low, value), max(high, value), len(pairs), figures
        )


def _mean_iou(counts: np.ndarray) -> float:
    both, wanted, found = counts
    union = wanted + found - both
    common = wanted >= max(1.0, _RARE * wanted.sum())
    return float(np.mean(both[common] / union[common])) if common.any() else 1.0


@dataclass(frozen=True, slots=True)
class SequenceMeasure:
    """Strings as greedy CTC decoding reads them: repeats joined, blanks dropped.

    Source: A. Graves et al., "Connectionist temporal classification", ICML 2006 (best path decoding).

    Attributes:
        output: name of the output, (N, T, C), or (T, N, C) with ``time_first``.
        time_first: the first axis counts steps.
        blank: class that stands for no character.
    """

    output: str
    time_first: bool = False
    blank: int = 0
    task: Task = "sequences"
    name: str = "characters as FP32"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The one output."""
        return (self.output,)

    def read(self, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None) -> np.ndarray:
        """Class of each step, integers (N, T)."""
        answer = answers[self.output]
        if not np.issubdtype(answer.dtype, np.integer):
            answer = np.nan_to_num(answer).argmax(axis=-1)
        return smallest_integers(answer.T if self.time_first else answer)

    def pair(self, wanted: np.ndarray, found: np.ndarray) -> list[tuple[float, float, float]]:
        """Of each sample: one minus the edit distance a character, equal strings, share of equal steps."""
        pairs = []
        for w, f in zip(wanted, found, strict=True):
            one, two = self.decoded(w), self.decoded(f)
            length = max(len(one), len(two), 1)
            same = float(np.mean(w == f)) if w.shape == f.shape else 0.0
            pairs.append((1 - edit_distance(one, two) / length, float(one == two), same))
        return pairs

    def decoded(self, steps: np.ndarray) -> list[int]:
        """Classes of the characters of one sample."""
        changed = np.concatenate([[True], steps[1:] != steps[:-1]]) if len(steps) else np.zeros(0, bool)
        return [int(step) for step in steps[changed] if step != self.blank]

    def score(self, pairs: Sequence[tuple[float, float, float]]) -> Score:
        """Mean over samples; bootstrap of them for the interval."""
        kept, equal, steps = np.array(pairs, np.float64).T
        figures = {"strings_equal": float(equal.mean()), "steps_same": float(steps.mean())}
        interval = bootstrap_mean(kept)
        return Score(self.task, self.name, self.outputs, float(kept.mean()), *interval, len(pairs), figures)


def edit_distance(one: Sequence[int], two: Sequence[int]) -> int:
    """Fewest insertions, deletions and replacements that make one sequence the other (Levenshtein)."""
    row = np.arange(len(two) + 1)
    other = np.asarray(two)
    for place, item in enumerate(one, 1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (other != item))
        row = np.concatenate([[place], changed])
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))  # insertions
    return int(row[-1])


@dataclass(frozen=True, slots=True)
class BoxMeasure:
    """AP of the file's boxes, those that the float model is sure of taken for truth.

    Attributes:
        outputs: names of the outputs that the decoder reads, in its order.
        decoder: one of :mod:`quantrim.detection`, or a callable.
        sure: score above which a box of the float model counts.
        thresholds: which candidates are told.
    """

    outputs: tuple[str, ...]
    decoder: Decoder | DecodeBoxes
    sure: float = 0.3
    thresholds: Thresholds = field(default_factory=Thresholds)
    task: Task = "detection"
    name: str = "AP against FP32's boxes"

    def read(self, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None) -> Sequence[Detections]:
        """Detections of each image."""
        if canvas is None:
            raise ModelError("boxes can't be decoded: no input of this model is an image (N, C, H, W).")
        arrays = [answers[name] for name in self.outputs]
        if callable(self.decoder):
            return self.decoder(arrays, canvas)
        return detect(self.decoder, arrays, canvas, self.thresholds)

    def pair(
        self, wanted: Sequence[Detections], found: Sequence[Detections]
    ) -> list[tuple[Detections, Detections]]:
        """The detections of each image."""
        empty = [Detections()] * abs(len(wanted) - len(found))  # rows end at the last image that has some
        longer = max(len(wanted), len(found))
        return list(zip([*wanted, *empty][:longer], [*found, *empty][:longer], strict=True))

    def score(self, pairs: Sequence[tuple[Detections, Detections]]) -> Score:
        """AP over all images; bootstrap of the images for the interval."""
        whole, ap = self._fidelity(pairs), []
        generator = np.random.default_rng(0)
        for _ in range(_BOX_RESAMPLES if whole.reference_boxes else 0):
            drawn = generator.integers(0, len(pairs), len(pairs))
            ap.append(self._fidelity([pairs[index] for index in drawn]).ap)
        low, high = (float(v) for v in np.percentile(ap, (2.5, 97.5))) if ap else (whole.ap, whole.ap)
        figures = {
            "ap50": whole.ap50,
            "boxes_kept": whole.kept,
            "mean_iou": whole.mean_iou,
            "boxes": float(whole.boxes),
            "reference_boxes": float(whole.reference_boxes),
        }
        return Score(self.task, self.name, self.outputs, whole.ap, low, high, len(pairs), figures)

    def _fidelity(self, pairs: Sequence[tuple[Detections, Detections]]) -> Any:
        wanted, found = ([pair[side] for pair in pairs] for side in (0, 1))
        classes = 1 + max((int(one.labels.max(initial=0)) for pair in pairs for one in pair), default=0)
        return box_fidelity(wanted, found, classes, score=self.sure)


@dataclass(frozen=True, slots=True)
class ValueMeasure:
    """Numbers: one minus the relative error, of the middle sample.

    Attributes:
        output: name of the output.
    """

    output: str
    task: Task = "values"
    name: str = "agreement with FP32"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The one output."""
        return (self.output,)

    def read(self, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None) -> np.ndarray:
        """The answer as it is."""
        return np.atleast_1d(answers[self.output])

    def pair(self, wanted: np.ndarray, found: np.ndarray) -> list[Distances]:
        """Distances of the batch."""
        return [Distances.of(wanted, found)]

    def score(self, pairs: Sequence[Distances]) -> Score:
        """Median over samples; the middle half of them for the interval."""
        each = np.clip(1 - Distances.joined(pairs).relative_error, 0, 1)
        low, middle, high = (float(v) for v in np.percentile(each, (25, 50, 75)))
        return Score(self.task, self.name, self.outputs, middle, low, high, len(each))
