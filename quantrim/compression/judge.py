"""What accuracy is: a metric on labelled pictures, or agreement with FP32 where there are no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from quantrim.engines import Session
from quantrim.errors import DataError, EngineError

Feed = Mapping[str, np.ndarray]


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
    """Share of samples (or pixels) that get the same class as from the float model, in points.

    Outputs without classes (fewer than two along axis 1, or integers) are compared whole: classes that the file
    itself computed by their equality, anything else by 100 times the mean cosine similarity.

    Args:
        reference: the float model; its answers are kept, as small as they can be.
        feeds: the batches to judge on, as often as asked.

    Raises:
        DataError: there is no batch.
    """
    output = reference.outputs[0].name
    answers = [reference.run(feed)[output] for feed in feeds()]
    if not answers:
        raise DataError("no picture is left to judge on; give more pictures, or fewer --samples.")
    count = sum(len(answer) for answer in answers)
    if _has_classes(answers[0]):
        expected = [_classes(answer) for answer in answers]

        def same(session: Session) -> float:
            name = session.outputs[0].name
            parts = (
                np.mean(_classes(session.run(feed)[name]) == want)
                for feed, want in zip(feeds(), expected, strict=True)
            )
            return 100 * float(np.average(list(parts), weights=[len(want) for want in expected]))

        step = 100 / count if all(want.ndim == 1 for want in expected) else None
        return Judge("same class as FP32", count, same, step)

    def close(session: Session) -> float:
        name = session.outputs[0].name
        cosines = [_cosine(session.run(feed)[name], want) for feed, want in zip(feeds(), answers, strict=True)]
        return 100 * float(np.concatenate(cosines).mean())

    return Judge("cosine similarity to FP32", count, close)


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


def _has_classes(answer: np.ndarray) -> bool:
    return np.issubdtype(answer.dtype, np.integer) or (answer.ndim > 1 and answer.shape[1] > 1)


def _classes(answer: np.ndarray) -> np.ndarray:
    """Classes as the smallest integers that hold them: a set of large pictures is kept whole."""
    classes = answer if np.issubdtype(answer.dtype, np.integer) else answer.argmax(axis=1)
    return classes.astype(np.min_scalar_type(int(classes.max(initial=0))))


def _cosine(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    one, two = (a.reshape(len(a), -1).astype(np.float64) for a in (got, want))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return np.where(norms > 0, np.einsum("ij,ij->i", one, two) / np.maximum(norms, 1e-30), 1.0)
