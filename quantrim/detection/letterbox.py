"""From an image to the model's canvas, and the way back of its boxes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from quantrim.detection.boxes import clipped
from quantrim.errors import DataError


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image lies on the model's canvas: ``canvas = image * scale + offset``.

    Attributes:
        height: of the image, pixels.
        width: of the image, pixels.
        scale_x: canvas pixels a pixel of the image; likewise ``scale_y``.
        left: columns of the canvas before the image; likewise ``top``, rows above it.
    """

    height: int
    width: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: float = 0.0
    top: float = 0.0

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the canvas as boxes of the image, cut at its border."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        return clipped((boxes - offset) / scale, self.height, self.width)

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the image on the canvas."""
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        return boxes * scale + np.array([self.left, self.top] * 2, np.float32)


def letterbox(
    image: np.ndarray, height: int, width: int, *, value: float = 114.0, centre: bool = False
) -> tuple[np.ndarray, Frame]:
    """The image on a canvas, its aspect kept.

    Args:
        image: (H, W, C), any dtype that OpenCV resizes.
        height: of the canvas.
        width: of the canvas.
        value: of the canvas beside the image.
        centre: the image in the middle, as YOLOv5 has it; else at the top left, as YOLOX has it.

    Returns:
        Canvas (height, width, C) of the image's dtype, and where the image lies on it.

    Raises:
        DataError: the image is empty.
    """
    rows, columns = image.shape[:2]
    if not rows or not columns:
        raise DataError(f"an image of shape {image.shape} is empty.")
    ratio = min(height / rows, width / columns)
    inside = (max(1, round(columns * ratio)), max(1, round(rows * ratio)))
    resized = cv2.resize(image, inside, interpolation=cv2.INTER_LINEAR).reshape(inside[1], inside[0], -1)
    left, top = ((width - inside[0]) // 2, (height - inside[1]) // 2) if centre else (0, 0)
    canvas = np.full((height, width, resized.shape[2]), value, image.dtype)
    canvas[top : top + inside[1], left : left + inside[0]] = resized
    return canvas, Frame(rows, columns, inside[0] / columns, inside[1] / rows, left, top)
