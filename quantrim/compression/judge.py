"""What accuracy is: a metric on labelled pictures, or agreement with FP32 where there are no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantrim.engines import Session
from quantrim.errors import DataError, EngineError
from quantrim.graph.ports import Feed


@dataclass(frozen=True, slots=True)
class Judge:
    """A measure of accuracy.

    Attributes:
        name: of the metric, for people.
        images: pictures that it is measured on.
        points: session → accuracy in points, 0..100, higher is better.
        step: points that one picture is worth, where pictures are either right or wrong.
    """

    name: str
    images: int
    points: Callable[[Session], float]
    step: float | None = None


def agreement_judge(reference: Session, feeds: Callable[[], Iterable[Feed]]) -> Judge:
    """How far a file's answers are the float model's, in points; the output that agrees least counts.

    Outputs of shape (N, C) and (N, C, H, W) with C > 1, and integers, are classes: the share of samples or
    pixels of the same class. Any other (a detector's boxes, a single score) is compared value by value: 100
    times one minus the relative L2 distance, at least 0.

    Args:
        reference: the float model; its answers are kept, as small as they can be.
        feeds: the batches to judge on, as often as asked.

    Raises:
        DataError: there is no batch.
    """
    kept: list[list[np.ndarray]] = []
    count = 0
    for feed in feeds():
        answers = _answers(reference, feed)
        count += len(answers[0])
        kept.append([_classes(answer) if _has_classes(answer) else answer for answer in answers])
    if not kept:
        raise DataError("no image is left to judge on; give more images, or fewer samples.", field="samples")

    def points(session: Session) -> float:
        sums = np.zeros((len(kept[0]), 2))
        for feed, expected in zip(feeds(), kept, strict=True):
            for index, (got, want) in enumerate(zip(_answers(session, feed), expected, strict=True)):
                sums[index] += _difference(got, want)
        return min(
            _points(differing, whole, integer)
            for (differing, whole), integer in zip(sums.tolist(), classes, strict=True)
        )

    classes = [np.issubdtype(one.dtype, np.integer) for one in kept[0]]
    name = "same class as FP32" if all(classes) else "agreement with FP32"
    single = len(classes) == 1 and classes[0] and kept[0][0].ndim == 1
    return Judge(name, count, points, 100 / count if single else None)


def metric_judge(
    evaluate: Callable[[Session], Mapping[str, float | list[float]]],
    key: str,
    images: int,
    step: float | None = None,
) -> Judge:
    """A metric of labelled data, times 100.

    Args:
        evaluate: session → metrics, such as :func:`quantrim.vision.evaluate.evaluate` gives.
        key: the metric that counts, in 0..1.
        images: pictures that it is measured on.
        step: points that one picture is worth, where pictures are either right or wrong.
    """

    def points(session: Session) -> float:
        value = evaluate(session)[key]
        if not isinstance(value, float) or not np.isfinite(value):
            raise EngineError(f"{key} of {session.engine} is {value}; it must be a finite number.")
        return 100 * value

    return Judge(key, images, points, step)


def _answers(session: Session, feed: Feed) -> Sequence[np.ndarray]:
    made = session.run(feed)
    return [np.atleast_1d(made[port.name]) for port in session.outputs]


def _has_classes(answer: np.ndarray) -> bool:
    return np.issubdtype(answer.dtype, np.integer) or (answer.ndim in (2, 4) and answer.shape[1] > 1)


def _classes(answer: np.ndarray) -> np.ndarray:
    """Classes as the smallest integers that hold them: a set of large pictures is kept whole."""
    classes = answer if np.issubdtype(answer.dtype, np.integer) else answer.argmax(axis=1)
    low, high = (np.min_scalar_type(int(value)) for value in (classes.min(initial=0), classes.max(initial=0)))
    return classes.astype(np.promote_types(low, high))


def _difference(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """What differs, of what there is: classes by their number, other values by their squares."""
    if np.issubdtype(want.dtype, np.integer):
        return float(np.sum(_classes(got) != want)), float(want.size)
    return float(np.square(got - want, dtype=np.float64).sum()), float(np.square(want, dtype=np.float64).sum())


def _points(differing: float, whole: float, classes: bool) -> float:
    share = differing / max(whole, 1e-30)
    return 100 * max(0.0, 1 - (share if classes else float(np.sqrt(share))))
