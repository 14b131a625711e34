"""The objects of an image and where their boxes go when the image changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from quantrim.detection import GroundTruth, clipped
from quantrim.detection.boxes import areas

#: A box stays in a cut image where so much of its area does, and it is at least so many pixels wide and high.
LEAST_VISIBLE, LEAST_SIDE = 0.25, 2.0


@dataclass(frozen=True, slots=True)
class Objects:
    """Boxes with what is in them.

    Attributes:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels.
        labels: int64 (N,), classes from 0.
        difficult: bool (N,), hard for people too, or a crowd; trained on, but not judged.
        weights: float32 (N,), how much each counts in the loss; below 1 in blended images.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, boxes: npt.ArrayLike, labels: npt.ArrayLike, difficult: npt.ArrayLike | None = None) -> Objects:
        """From anything array-like."""
        corners = np.asarray(boxes, np.float32).reshape(-1, 4)
        hard = np.zeros(len(corners), bool) if difficult is None else np.asarray(difficult, bool).reshape(-1)
        return cls(corners, np.asarray(labels, np.int64).reshape(-1), hard, np.ones(len(corners), np.float32))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray) -> Objects:
        """Those rows, by mask or positions."""
        return Objects(self.boxes[rows], self.labels[rows], self.difficult[rows], self.weights[rows])

    def moved(self, scale: Sequence[float] = (1, 1), offset: Sequence[float] = (0, 0)) -> Objects:
        """Boxes times ``scale`` (x, y) plus ``offset`` (x, y)."""
        boxes = self.boxes * np.array([*scale, *scale], np.float32) + np.array([*offset, *offset], np.float32)
        return replace(self, boxes=boxes)

    def mirrored(self, length: int, axis: int) -> Objects:
        """Mirrored left and right (axis 0) in an image of that width, or top and bottom (1) of that height."""
        boxes = self.boxes.copy()
        boxes[:, axis], boxes[:, axis + 2] = length - self.boxes[:, axis + 2], length - self.boxes[:, axis]
        return replace(self, boxes=boxes)

    def warped(self, matrix: np.ndarray) -> Objects:
        """Boxes around the corners that an affine map (2, 3) gives."""
        x, y = self.boxes[:, [0, 2, 2, 0]], self.boxes[:, [1, 1, 3, 3]]
        columns = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
        rows = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
        sides = [columns.min(axis=1), rows.min(axis=1), columns.max(axis=1), rows.max(axis=1)]
        return replace(self, boxes=np.stack(sides, axis=1).astype(np.float32))

    def cut(self, height: int, width: int) -> Objects:
        """What is seen of them in an image of that size: boxes cut at its border, little rests dropped."""
        boxes = clipped(self.boxes, height, width)
        sides = boxes[:, 2:] - boxes[:, :2]
        seen = areas(boxes) >= LEAST_VISIBLE * areas(self.boxes)
        return replace(self, boxes=boxes)[seen & (sides >= LEAST_SIDE).all(axis=1)]

    def rows(self, count: int) -> np.ndarray:
        """What a loss reads: float32 (count, 6) of class, x1, y1, x2, y2, weight; class -1 where no more are.

        Of more than ``count`` objects the largest stay.
        """
        chosen = np.sort(np.argsort(-areas(self.boxes), kind="stable")[:count])
        rows = np.zeros((count, 6), np.float32)
        rows[:, 0] = -1
        rows[: len(chosen), 0] = self.labels[chosen]
        rows[: len(chosen), 1:5] = self.boxes[chosen]
        rows[: len(chosen), 5] = self.weights[chosen]
        return rows

    def truth(self) -> GroundTruth:
        """What a metric reads."""
        return GroundTruth(self.boxes, self.labels, self.difficult)


def joined(parts: Sequence[Objects]) -> Objects:
    """All objects of several."""
    return Objects(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.difficult for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )
