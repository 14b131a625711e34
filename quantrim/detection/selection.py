"""From candidates to detections: score threshold, non-maximum suppression, the best few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from quantrim.detection.boxes import Detections, clipped, iou_matrix
from quantrim.detection.decoders import Decoder, RowsDecoder
from quantrim.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Which candidates are told. The defaults are PaddleDetection's for YOLOv3.

    Attributes:
        score: candidates below are dropped; 0.01 for a metric, 0.25 and more for people.
        iou: of two boxes of a class that overlap by more, the weaker one is dropped.
        before: best candidates of each class that go into suppression.
        keep: best detections of an image.
    """

    score: float = 0.01
    iou: float = 0.45
    before: int = 1000
    keep: int = 100

    def __post_init__(self) -> None:
        for name in ("score", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between 0 and 1.")
        if self.before < 1 or self.keep < 1:
            raise ConfigError(f"before is {self.before}, keep {self.keep}; both must be at least 1.")


def thresholds_from(values: Mapping[str, float]) -> Thresholds:
    """Thresholds of a mapping such as ``{score: 0.25, iou: 0.45}``.

    Raises:
        ConfigError: an unknown name, or a value that is out of range.
    """
    known = [entry.name for entry in fields(Thresholds)]
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"threshold {str(unknown)!r} is unknown{did_you_mean(str(unknown), known)}")
    chosen = {name: value if name in ("score", "iou") else int(value) for name, value in values.items()}
    return Thresholds(**chosen)  # type: ignore[arg-type]


def nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Greedy suppression: positions of the boxes that stay, best first; of equal scores the first stays.

    Args:
        boxes: (N, 4).
        scores: (N,).
        iou: a box goes where it overlaps a better one that stayed by more than this.
    """
    order = np.argsort(-scores, kind="stable")
    overlap = iou_matrix(boxes[order], boxes[order]) > iou
    alive = np.ones(len(order), bool)
    for place in range(len(order)):
        if alive[place]:
            alive[place + 1 :] &= ~overlap[place, place + 1 :]
    return order[alive]


def select(boxes: np.ndarray, scores: np.ndarray, thresholds: Thresholds) -> Detections:
    """Detections of one image from its candidates; every class is suppressed for itself.

    Args:
        boxes: (P, 4).
        scores: (P, C), one column a class.
        thresholds: see :class:`Thresholds`.
    """
    found = []
    for label in np.flatnonzero((scores > thresholds.score).any(axis=0)):
        chosen = np.flatnonzero(scores[:, label] > thresholds.score)
        best = chosen[np.argsort(-scores[chosen, label], kind="stable")[: thresholds.before]]
        kept = best[nms(boxes[best], scores[best, label], thresholds.iou)]
        found.append(Detections(boxes[kept], scores[kept, label], np.full(len(kept), label, np.int64)))
    if not found:
        return Detections()
    whole = Detections(
        np.concatenate([one.boxes for one in found]).astype(np.float32),
        np.concatenate([one.scores for one in found]).astype(np.float32),
        np.concatenate([one.labels for one in found]),
    )
    return whole[np.argsort(-whole.scores, kind="stable")[: thresholds.keep]]


def detect(
    decoder: Decoder,
    outputs: Sequence[np.ndarray],
    size: tuple[int, int],
    thresholds: Thresholds | None = None,
    batch: int | None = None,
) -> list[Detections]:
    """Detections of a batch, in pixels of the model's canvas and cut at its border.

    Args:
        decoder: what the outputs mean.
        outputs: of the model, batch first, in its order.
        size: height and width of the canvas.
        thresholds: PaddleDetection's by default; a file that suppresses itself has its own.
        batch: number of images, where the file suppresses itself and images may be without detections.

    Raises:
        ModelError: the outputs don't fit the decoder.
    """
    chosen = thresholds or Thresholds()
    if isinstance(decoder, RowsDecoder):
        return [one.above(chosen.score)[: chosen.keep] for one in decoder.detections(outputs, batch)]
    boxes, scores = decoder.candidates(outputs, size)
    boxes = clipped(boxes, *size)
    return [select(box, score, chosen) for box, score in zip(boxes, scores, strict=True)]
