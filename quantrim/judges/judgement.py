"""Whether a file is faithful: what two models answer to the same samples, judged by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quantrim.errors import ModelError
from quantrim.judges.bars import CLEAR_DB, NOISE_DB, SCORE_BARS, VALUE_BARS, Level, Task
from quantrim.judges.distances import MOST_DB, Distances, worst_decile
from quantrim.judges.measures import Measure, Score, ValueMeasure
from quantrim.judges.reading import Judging, Reading, read_as


@dataclass(frozen=True, slots=True)
class OutputAgreement:
    """Distance between the outputs of the quantized file on its engine and of the float model.

    Attributes:
        output: name of the output.
        cosine: median over samples of the cosine similarity.
        sqnr_db: median over samples of the signal to quantization noise, decibel; 200 for equal outputs.
        top1: share of samples, pixels or steps with the same class; None where the output holds no classes.
        sqnr_db_worst: what nine samples in ten reach.
        relative_error: median over samples of the L2 distance over the L2 norm.
        samples: how many were compared.
    """

    output: str
    cosine: float
    sqnr_db: float
    top1: float | None
    sqnr_db_worst: float = MOST_DB
    relative_error: float = 0.0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a file kept of the float model.

    Attributes:
        task: that its outputs were read as.
        how: a sentence on where the task comes from.
        level: bar that was asked for.
        faithful: whether it is reached.
        reasons: what falls short; empty where nothing does.
        scores: of the task, one a measure.
        outputs: the numbers of each output, the one that agrees least first.
        samples: how many were judged.
        held_out: they did not calibrate; None where nobody knows.
    """

    task: Task
    how: str
    level: Level
    faithful: bool
    reasons: tuple[str, ...]
    scores: tuple[Score, ...]
    outputs: tuple[OutputAgreement, ...]
    samples: int
    held_out: bool | None

    @property
    def where(self) -> str:
        """On what it was judged, for people."""
        count = f"{self.samples} sample{'s' if self.samples > 1 else ''}"
        if self.held_out is None:
            return count
        return f"{count} kept from calibration" if self.held_out else f"the {count} of its calibration"

    @property
    def summary(self) -> str:
        """The figures in one clause, those of the least faithful score and output first."""
        score, least = least_of(self.scores, self.level), self.outputs[0]
        of_output = f" of output {least.output!r}" if len(self.outputs) > 1 else ""
        numbers = f"SQNR{of_output} {least.sqnr_db:.1f} dB (nine in ten {least.sqnr_db_worst:.1f})"
        if score is None:
            return f"{numbers} on {self.where}"
        return f"{told(score)}, {numbers}, on {self.where}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return asdict(self)


def told(score: Score) -> str:
    """A score in words."""
    if score.task == "segmentation":
        return f"{score.name} {score.value:.3f} ({score.figures['pixels_same']:.1%} of the pixels)"
    if score.task == "detection":
        kept, boxes = score.figures["boxes_kept"], score.figures["reference_boxes"]
        return f"{score.name} {score.value:.3f} ({kept:.1%} of {boxes:.0f} boxes kept)"
    if score.task == "sequences":
        return f"{score.value:.1%} of the {score.name} ({score.figures['strings_equal']:.1%} of the strings)"
    return f"{score.name} on {score.value:.1%}"


def least_of(scores: Sequence[Score], level: Level) -> Score | None:
    """The score that is nearest to its bar, or farthest below; None where there are values alone."""
    bars = SCORE_BARS.get(level, SCORE_BARS["faithful"])
    known = [score for score in scores if score.task in bars]
    return min(known, key=lambda score: score.value - bars[score.task], default=None)


class Jury:
    """Hears the answers of two models to the same batches, and judges.

    Args:
        judging: how.
    """

    def __init__(self, judging: Judging) -> None:
        self.judging = judging
        self.reading: Reading | None = None
        self._distances: dict[str, list[Distances]] = {}
        self._pairs: list[list[Any]] = []
        self._samples = 0

    def hear(
        self, feed: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]
    ) -> None:
        """Take in one batch.

        Args:
            feed: inputs.
            expected: outputs of the float model.
            got: outputs of the other, by the same names.

        Raises:
            ModelError: the float model's outputs hold NaN, so nothing can be compared with them.
        """
        batch, canvas = batch_of(feed), canvas_of(feed)
        require_numbers(expected)
        if self.reading is None:
            self.reading = read_as(self.judging, expected, canvas, batch)
            self._pairs = [[] for _ in self.reading.measures]
        for name, wanted in expected.items():
            one = distances(wanted, got[name], batch)
            self._distances.setdefault(name, []).append(one)
        for measure, pairs in zip(self.reading.measures, self._pairs, strict=True):
            if not isinstance(measure, ValueMeasure):
                pairs += measure.pair(measure.read(expected, canvas), measure.read(got, canvas))
        self._samples += batch

    def judgement(self, held_out: bool | None = None) -> Judgement:
        """What was heard says.

        Args:
            held_out: the samples did not calibrate; None where nobody knows.

        Raises:
            ModelError: nothing was heard.
        """
        if self.reading is None:
            raise ModelError("nothing to judge on: no sample was given.")
        reading, whole = self.reading, {k: Distances.joined(v) for k, v in self._distances.items()}
        scores = tuple(
            measure.score(pairs) for measure, pairs in zip(reading.measures, self._pairs, strict=True) if pairs
        )
        shares = {name: share for measure, score in zip(_kinds(reading), scores, strict=True)
                  if (share := _same_classes(score)) is not None for name in measure.outputs}  # fmt: skip
        outputs = [agreement_of(name, one, shares.get(name)) for name, one in whole.items()]
        reasons = [*_lost(whole), *_below(reading, scores, outputs, self.judging.accept)]
        return Judgement(
            task=reading.task,
            how=reading.how,
            level=self.judging.accept,
            faithful=not reasons,
            reasons=tuple(dict.fromkeys(reasons)),
            scores=scores,
            outputs=tuple(sorted(outputs, key=lambda one: one.sqnr_db)),
            samples=self._samples,
            held_out=held_out,
        )


def _kinds(reading: Reading) -> list[Measure]:
    return [measure for measure in reading.measures if not isinstance(measure, ValueMeasure)]


def _same_classes(score: Score) -> float | None:
    """Share of samples, pixels or steps of the same class; None for boxes."""
    keys = {"segmentation": "pixels_same", "sequences": "steps_same"}
    if score.task == "classification":
        return score.value
    return score.figures[keys[score.task]] if score.task in keys else None


def agreement_of(name: str, one: Distances, top1: float | None) -> OutputAgreement:
    """Robust numbers of one output's distances."""
    decibel = one.sqnr_db
    return OutputAgreement(
        output=name,
        cosine=float(np.median(one.cosine)),
        sqnr_db=float(np.median(decibel)),
        top1=top1,
        sqnr_db_worst=worst_decile(decibel),
        relative_error=float(np.median(one.relative_error)),
        samples=len(decibel),
    )


def _lost(whole: Mapping[str, Distances]) -> list[str]:
    return [
        f"output {name!r} holds NaN or infinite values in {int(np.isinf(one.noise).sum())} of "
        f"{len(one.noise)} samples where FP32 has numbers"
        for name, one in whole.items()
        if np.isinf(one.noise).any()
    ]


def _below(
    reading: Reading, scores: Sequence[Score], outputs: Sequence[OutputAgreement], level: Level
) -> list[str]:
    """What stays below the bars of a level."""
    if level == "any":
        return []
    reasons, bars, least = [], SCORE_BARS[level], VALUE_BARS[level]
    decibel = {one.output: one.sqnr_db for one in outputs}
    for score in scores:
        bar = bars[score.task]
        doubtful = reading.told or min(decibel[name] for name in score.outputs) < CLEAR_DB
        if doubtful and score.high < bar:
            reasons.append(f"{told(score)} of {score.samples} samples, {bar:.0%} is asked")
    decoded = {name for score in scores if score.task == "detection" for name in score.outputs}
    classes = {name for score in scores for name in score.outputs}
    for one in outputs:
        if one.output in decoded:
            continue
        bar_db = NOISE_DB if reading.told and one.output in classes else least
        if one.sqnr_db < bar_db:
            reasons.append(f"SQNR of output {one.output!r} is {one.sqnr_db:.1f} dB, {bar_db:g} dB is asked")
        elif not (reading.told and one.output in classes) and one.sqnr_db_worst < bar_db / 2:
            reasons.append(
                f"one sample in ten of output {one.output!r} stays below {one.sqnr_db_worst:.1f} dB, "
                f"{bar_db / 2:g} dB is asked"
            )
    return reasons


def distances(wanted: np.ndarray, got: np.ndarray, batch: int) -> Distances:
    """Distances of a batch's answers, each sample for itself; 0 dB where the shapes differ.

    Args:
        wanted: the float model's output, whatever its shape.
        got: the other's; a file that suppresses boxes itself may give other numbers of them.
        batch: samples of the batch.
    """
    one, two = by_sample(wanted, batch), by_sample(got, batch)
    if one.shape == two.shape:
        return Distances.of(one, two)
    power = np.full(batch, max(float(np.square(wanted, dtype=np.float64).sum()), 1e-30))
    return Distances(power, power, power, np.zeros(batch))


def by_sample(answer: np.ndarray, batch: int) -> np.ndarray:
    """An output with the axis that counts samples first: (batch, ...), or (1, ...) where none does."""
    if answer.ndim and answer.shape[0] == batch:
        return answer
    if answer.ndim > 1 and answer.shape[1] == batch:
        return np.moveaxis(answer, 1, 0)
    if answer.ndim and answer.size and answer.shape[0] % batch == 0:
        return answer.reshape(batch, -1)
    return answer[None]


def batch_of(feed: Mapping[str, np.ndarray]) -> int:
    """Samples of a batch, by its first input."""
    first = next(iter(feed.values()))
    return len(first) if np.ndim(first) else 1


def canvas_of(feed: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """Height and width of the first input that is an image, (N, C, H, W) or (N, H, W, C)."""
    for array in feed.values():
        if np.ndim(array) == 4:
            last = array.shape[3] in (1, 3, 4) and array.shape[1] > 4
            return (array.shape[1], array.shape[2]) if last else (array.shape[2], array.shape[3])
    return None


def require_numbers(expected: Mapping[str, np.ndarray]) -> None:
    """Raise ModelError where the float model itself gives NaN."""
    for name, array in expected.items():
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise ModelError(
                f"output {name!r} of the float model is NaN for these inputs; check its weights and the data."
            )
