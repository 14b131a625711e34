"""Which task a model's outputs belong to: as told, else as their shapes and values say, and it is said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantrim.detection import BoxesDecoder, Decoder, Thresholds, YoloXDecoder, decoder_from
from quantrim.errors import ConfigError
from quantrim.judges.bars import Level, Task, level_named, task_named
from quantrim.judges.measures import (
    BoxMeasure,
    ClassMeasure,
    DecodeBoxes,
    MapMeasure,
    Measure,
    SequenceMeasure,
    ValueMeasure,
)

#: Strides whose cells a row of boxes may count.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
#: How far a soft-max may be from a sum of one.
_SUM = 1e-3


@dataclass(frozen=True, slots=True)
class Judging:
    """How a file is to be judged.

    Attributes:
        task: "classification", "segmentation", "detection", "sequences" or "values" (embeddings, regressions,
            images); None lets the outputs' shapes say it.
        decoder: for detection: one of :mod:`quantrim.detection`, its mapping, or a callable that takes the
            outputs and the canvas's (height, width) and gives :class:`~quantrim.detection.Detections` an image.
        accept: level that a file must reach: "strict", "faithful", "loose", or "any" for no bar.
        sure: score above which a box of the float model counts.
        blank: for sequences: class that stands for no character.
        source: who told the task, for people.

    Raises:
        ConfigError: an unknown word, or a decoder that does not fit.
    """

    task: Task | None = None
    decoder: Decoder | DecodeBoxes | None = None
    accept: Level = "faithful"
    sure: float = 0.3
    blank: int = 0
    source: str = "as told"

    def __post_init__(self) -> None:
        level_named(self.accept)
        if self.task is not None:
            object.__setattr__(self, "task", task_named(self.task))
        if isinstance(self.decoder, Mapping):
            object.__setattr__(self, "decoder", decoder_from(self.decoder))
        if self.decoder is not None and self.task is None:
            object.__setattr__(self, "task", "detection")
        if self.decoder is not None and self.task != "detection":
            raise ConfigError(f"decoder: boxes of task {self.task!r} can't be decoded.", field="decoder")


@dataclass(frozen=True, slots=True)
class Reading:
    """How outputs are read.

    Attributes:
        task: of the model; that of its first output where outputs differ.
        told: whether somebody said so.
        how: a sentence on where the task comes from.
        measures: each reads one output, or several.
    """

    task: Task
    told: bool
    how: str
    measures: tuple[Measure, ...]


def read_as(
    judging: Judging, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None, batch: int
) -> Reading:
    """How the outputs of a model are read.

    Args:
        judging: what was told.
        answers: the float model's outputs for one batch.
        canvas: height and width of the input image; None where no input is one.
        batch: samples of the batch.
    """
    if judging.task is None:
        return _inferred(judging, answers, canvas, batch)
    task = judging.task
    how = f"judged as {task}, {judging.source}"
    if task == "detection":
        measure = _boxes(judging, answers, canvas)
        if measure is not None:
            return Reading(task, True, how, (measure,))
        values = tuple(ValueMeasure(name) for name in answers)
        return Reading(
            "values", False, "judged as values: detection was told, but no decoder of its boxes", values
        )
    made = tuple(_told(judging, name, answer, canvas, batch) for name, answer in answers.items())
    return Reading(task, True, how, made)


def _told(
    judging: Judging, name: str, answer: np.ndarray, canvas: tuple[int, int] | None, batch: int
) -> Measure:
    integers = np.issubdtype(answer.dtype, np.integer)
    if judging.task == "classification" and (integers or answer.ndim > 1):
        return ClassMeasure(name, None if integers else class_axis(answer, canvas))
    if judging.task == "segmentation" and answer.ndim >= 3:
        return MapMeasure(name, None if integers else class_axis(answer, canvas))
    if judging.task == "sequences" and answer.ndim == (2 if integers else 3):
        return SequenceMeasure(name, _time_first(answer, batch), judging.blank)
    return ValueMeasure(name)


def class_axis(answer: np.ndarray, canvas: tuple[int, int] | None = None) -> int:
    """Axis of an output's class scores, whatever its rank.

    The only axis of more than one value; else one along which the values sum to one; else the last of a
    (N, T, C) or channels-last output, and the second of all others.

    Args:
        answer: batch first.
        canvas: height and width of the input image.
    """
    wide = [axis for axis in range(1, answer.ndim) if answer.shape[axis] > 1]
    if len(wide) <= 1:
        return wide[0] if wide else answer.ndim - 1
    sums = [axis for axis in wide if _is_softmax(answer, axis)]
    if len(sums) == 1:
        return sums[0]
    last = answer.ndim == 3 or (answer.ndim == 4 and canvas is not None and answer.shape[1:3] == canvas)
    return answer.ndim - 1 if last else 1


def _is_softmax(answer: np.ndarray, axis: int) -> bool:
    """Whether the values are shares of one along an axis."""
    if answer.size == 0 or not np.isfinite(answer).all() or answer.min() < 0:
        return False
    return bool(np.abs(answer.sum(axis=axis, dtype=np.float64) - 1).max() < _SUM)


def _time_first(answer: np.ndarray, batch: int) -> bool:
    return answer.shape[0] != batch and answer.ndim > 1 and answer.shape[1] == batch


def _inferred(
    judging: Judging, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None, batch: int
) -> Reading:
    if canvas is not None:
        boxes = _boxes(judging, answers, canvas)
        if boxes is not None:
            shape = " x ".join(map(str, answers[boxes.outputs[0]].shape[1:]))
            return Reading(
                "detection",
                False,
                f"judged as detection: no task given, but {shape} values fit the input's cells",
                (boxes,),
            )
    measures = tuple(_likely(judging, name, answer, canvas, batch) for name, answer in answers.items())
    tasks = list(dict.fromkeys(one.task for one in measures))
    if tasks == ["values"]:
        return Reading("values", False, "judged as values: no task given", measures)
    told = " and ".join(tasks)
    return Reading(tasks[0], False, f"judged as {told}: no task given, the outputs' shapes say so", measures)


def _likely(
    judging: Judging, name: str, answer: np.ndarray, canvas: tuple[int, int] | None, batch: int
) -> Measure:
    """What an output probably is; numbers where nothing speaks for classes."""
    if answer.ndim == 0 or 0 in answer.shape:
        return ValueMeasure(name)
    if np.issubdtype(answer.dtype, np.integer):
        return MapMeasure(name, None) if answer.ndim >= 3 else ClassMeasure(name, None)
    if not np.issubdtype(answer.dtype, np.floating):
        return ValueMeasure(name)
    if answer.ndim == 3 and answer.shape[2] > 2 and _is_softmax(answer, 2):
        return SequenceMeasure(name, _time_first(answer, batch), judging.blank)
    if answer.shape[0] != batch:
        return ValueMeasure(name)
    if answer.ndim == 2 or (answer.ndim == 4 and answer.shape[2:] == (1, 1)):
        scores = answer.reshape(len(answer), -1)
        return ValueMeasure(name) if _is_embedding(scores) else ClassMeasure(name, 1)
    if answer.ndim == 4 and canvas is not None:
        for axis, plane in ((1, answer.shape[2:]), (3, answer.shape[1:3])):
            if plane == canvas and answer.shape[axis] > 1 and not _is_image(answer, axis):
                return MapMeasure(name, axis)
    return ValueMeasure(name)


def _is_embedding(scores: np.ndarray) -> bool:
    """One value a sample, or vectors of unit length: nothing to take the largest of."""
    lengths = np.linalg.norm(scores.astype(np.float64), axis=1)
    return scores.shape[1] < 2 or bool(np.abs(lengths - 1).max() < _SUM and not _is_softmax(scores, 1))


def _is_image(answer: np.ndarray, axis: int) -> bool:
    """Three channels as large as the input are an image, unless they are shares of one."""
    return answer.shape[axis] == 3 and not _is_softmax(answer, axis)


def _boxes(
    judging: Judging, answers: Mapping[str, np.ndarray], canvas: tuple[int, int] | None
) -> BoxMeasure | None:
    """Measure of boxes, by the decoder that was told or by one that the only output fits."""
    decoder: Decoder | DecodeBoxes | None = judging.decoder
    if decoder is None and canvas is not None:
        floats = [one for one in answers.values() if np.issubdtype(one.dtype, np.floating)]
        decoder = likely_decoder(floats[0], canvas) if len(floats) == 1 and floats[0].ndim == 3 else None
        answers = {name: one for name, one in answers.items() if np.issubdtype(one.dtype, np.floating)}
    if decoder is None:
        return None
    return BoxMeasure(tuple(answers), decoder, judging.sure, Thresholds())


def likely_decoder(rows: np.ndarray, canvas: tuple[int, int]) -> Decoder | DecodeBoxes | None:
    """Decoder of one output (N, P, K) or (N, K, P) with a row for each cell of the usual strides.

    Rows of (x, y, w, h, objectness, classes...) are YOLOX's, decoded or not; columns of (x, y, w, h,
    classes...) are those of later detectors without objectness. None where rows don't count cells.
    """
    cells = {sum(-(-canvas[0] // s) * -(-canvas[1] // s) for s in strides): strides for strides in _STRIDES}
    in_pixels = float(np.abs(rows).max(initial=0)) > max(canvas) / 2
    if rows.shape[1] in cells and rows.shape[2] >= 6:
        scores = rows[..., 4:]
        activated = bool(scores.min() >= 0 and scores.max() <= 1)
        if in_pixels:
            return joined_scores if activated else None
        return YoloXDecoder(rows.shape[2] - 5, cells[rows.shape[1]], activated)
    if rows.shape[2] in cells and rows.shape[1] >= 5 and in_pixels:
        return _columns
    return None


def joined_scores(outputs: Sequence[np.ndarray], canvas: tuple[int, int]) -> list:  # type: ignore[type-arg]
    """Detections of decoded rows (centre, size, objectness, classes)."""
    from quantrim.detection import detect

    rows = outputs[0]
    joined = np.concatenate([rows[..., :4], rows[..., 4:5] * rows[..., 5:]], axis=-1)
    return detect(BoxesDecoder(rows.shape[2] - 5, "cxcywh"), [joined], canvas)


def _columns(outputs: Sequence[np.ndarray], canvas: tuple[int, int]) -> list:  # type: ignore[type-arg]
    from quantrim.detection import detect

    rows = outputs[0].transpose(0, 2, 1)
    return detect(BoxesDecoder(rows.shape[2] - 4, "cxcywh"), [rows], canvas)
