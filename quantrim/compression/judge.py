"""What accuracy is: a metric on labelled images, or agreement with FP32 where there are no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantrim.engines import Session
from quantrim.errors import DataError, EngineError
from quantrim.graph.ports import Feed
from quantrim.judges import Judging, Reading, canvas_of, read_as, require_numbers


@dataclass(frozen=True, slots=True)
class Judge:
    """A measure of accuracy.

    Attributes:
        name: of the metric, for people.
        images: images that it is measured on.
        points: session → accuracy in points, 0..100, higher is better.
        step: points that one image is worth, where images are either right or wrong.
        key: digest of what it judges on, so that a killed search needs not judge again; "" where the data of
            the search say so, None where nobody knows.
    """

    name: str
    images: int
    points: Callable[[Session], float]
    step: float | None = None
    key: str | None = None


def agreement_judge(
    reference: Session, feeds: Callable[[], Iterable[Feed]], judging: Judging | None = None
) -> Judge:
    """How far a file's answers are the float model's, in points; the score that is least counts.

    Args:
        reference: the float model; its answers are kept, as small as they can be.
        feeds: the batches to judge on, as often as asked.
        judging: how outputs are read; by their shapes by default.

    Raises:
        DataError: there is no batch.
        ModelError: the float model gives NaN, or a decoder does not fit the outputs.
    """
    judging = judging or Judging()
    reading: Reading | None = None
    kept: list[list[Any]] = []
    count = 0
    for feed in feeds():
        answers = _answers(reference, reference, feed)
        canvas, batch = canvas_of(feed), len(next(iter(feed.values())))
        require_numbers(answers)
        reading = reading or read_as(judging, answers, canvas, batch)
        count += batch
        kept.append([measure.read(answers, canvas) for measure in reading.measures])
    if reading is None:
        raise DataError("no image is left to judge on; give more images, or fewer samples.", field="samples")
    measures = reading.measures

    def points(session: Session) -> float:
        pairs: list[list[Any]] = [[] for _ in measures]
        for feed, wanted in zip(feeds(), kept, strict=True):
            answers = _answers(reference, session, feed)
            for place, measure in enumerate(measures):
                pairs[place] += measure.pair(wanted[place], measure.read(answers, canvas_of(feed)))
        return 100 * min(one.score(found).value for one, found in zip(measures, pairs, strict=True))

    names = dict.fromkeys(measure.name for measure in measures)
    name = next(iter(names)) if len(names) == 1 else "agreement with FP32"
    single = len(measures) == 1 and measures[0].task == "classification"
    return Judge(name, count, points, 100 / count if single else None, "")


def metric_judge(
    evaluate: Callable[[Session], Mapping[str, float | list[float]]],
    key: str,
    images: int,
    step: float | None = None,
    judged_on: str | None = None,
) -> Judge:
    """A metric of labelled data, times 100.

    Args:
        evaluate: session → metrics, such as :func:`quantrim.vision.evaluate.evaluate` gives.
        key: the metric that counts, in 0..1.
        images: images that it is measured on.
        step: points that one image is worth, where images are either right or wrong.
        judged_on: digest of the images, their labels and how they are judged, where it is known.
    """

    def points(session: Session) -> float:
        value = evaluate(session)[key]
        if not isinstance(value, float) or not np.isfinite(value):
            raise EngineError(f"{key} of {session.engine} is {value}; it must be a finite number.")
        return 100 * value

    return Judge(key, images, points, step, judged_on)


def _answers(reference: Session, session: Session, feed: Feed) -> dict[str, np.ndarray]:
    """Answers of a session by the names of the reference's outputs."""
    made = session.run(feed)
    return {
        one.name: np.atleast_1d(made[other.name])
        for one, other in zip(reference.outputs, session.outputs, strict=True)
    }
