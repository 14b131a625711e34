"""Boxes as arrays: corners x1, y1, x2, y2 in pixels, float32 (N, 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

#: float32 (N, 4): x1, y1, x2, y2.
Boxes = npt.NDArray[np.float32]


def _none(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector says of one image, best first.

    Attributes:
        boxes: float32 (N, 4), pixels of the image.
        scores: float32 (N,), 0 to 1.
        labels: int64 (N,), classes from 0.
    """

    boxes: np.ndarray = field(default_factory=lambda: _none(0, 4))
    scores: np.ndarray = field(default_factory=lambda: _none(0))
    labels: np.ndarray = field(default_factory=lambda: _none(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray | slice) -> Detections:
        """Those rows, by mask, positions or slice."""
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows])

    def above(self, score: float) -> Detections:
        """Those with a score above ``score``."""
        return self[self.scores > score]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What is in an image.

    Attributes:
        boxes: float32 (N, 4), pixels.
        labels: int64 (N,), classes from 0.
        difficult: bool (N,); such a box is neither demanded nor punished (COCO: a crowd).
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray

    @classmethod
    def of(cls, boxes: npt.ArrayLike, labels: npt.ArrayLike, difficult: npt.ArrayLike = ()) -> GroundTruth:
        """From anything array-like; ``difficult`` may be left out."""
        corners = np.asarray(boxes, np.float32).reshape(-1, 4)
        flags = np.asarray(difficult, bool).reshape(-1)
        flags = flags if len(flags) else np.zeros(len(corners), bool)
        return cls(corners, np.asarray(labels, np.int64).reshape(-1), flags)

    def __len__(self) -> int:
        return len(self.labels)


def to_corners(boxes: np.ndarray, form: str = "cxcywh") -> np.ndarray:
    """Corners of boxes (..., 4) given as "xyxy", "xywh" (corner and size) or "cxcywh" (centre and size)."""
    if form == "xyxy":
        return boxes
    first, size = boxes[..., :2], boxes[..., 2:]
    if form == "cxcywh":
        first = first - size / 2
    return np.concatenate([first, first + size], axis=-1)


def clipped(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Boxes cut at the border of an image."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def areas(boxes: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Area of boxes (..., 4), 0 where a box is turned inside out; ``offset`` as in :func:`iou_matrix`."""
    sizes = np.maximum(boxes[..., 2:] - boxes[..., :2] + offset, 0)
    return sizes[..., 0] * sizes[..., 1]


def iou_matrix(first: np.ndarray, second: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Intersection over union of every pair.

    Args:
        first: (N, 4).
        second: (M, 4).
        offset: added to widths and heights: 1 where corners are the first and the last pixel, as in PASCAL
            VOC's tools, 0 where they are edges.

    Returns:
        (N, M); 0 for pairs without area.
    """
    top = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = areas(np.concatenate([top, bottom], axis=-1), offset)
    union = areas(first, offset)[:, None] + areas(second, offset)[None] - common
    return common / np.where(union > 0, union, 1)
