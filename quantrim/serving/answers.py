"""What a model says as what a client gets: named classes, shares of the area, a mask, or boxes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from quantrim.detection import Detections
from quantrim.serving.artefact import Artefact
from quantrim.vision.data.sample import Sample, classes_of, undo_boxes
from quantrim.vision.palette import PALETTE


def top_classes(artefact: Artefact, scores: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """The most probable classes, best first.

    Args:
        artefact: says what the scores are.
        scores: float32 (classes,), or the class itself where the file ends with arg max.
        count: how many.
    """
    if artefact.output == "argmax":
        return [{"class": artefact.name_of(int(scores)), "index": int(scores)}]
    shares = scores if artefact.output == "softmax" else _softmax(scores)
    best = np.argsort(-shares, kind="stable")[:count]
    return [{"class": artefact.name_of(int(i)), "index": int(i), "probability": float(shares[i])} for i in best]


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(powers / powers.sum())


def pixel_classes(scores: np.ndarray, sample: Sample) -> np.ndarray:
    """Class of each pixel of the image that was sent, int64 (H, W)."""
    return classes_of(scores, sample)


def area_shares(artefact: Artefact, classes: np.ndarray) -> list[dict[str, Any]]:
    """Classes that occur, with their share of the pixels, largest first."""
    counts = np.bincount(classes.ravel())
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return [{"class": artefact.name_of(i), "index": i, "share": float(counts[i] / classes.size)} for i in order]


def boxes_told(artefact: Artefact, found: Detections, sample: Sample) -> list[dict[str, Any]]:
    """Boxes in pixels of the image that was sent, best first: corners x1, y1, x2, y2, class and score."""
    height, width = sample.image.shape[:2]
    boxes = undo_boxes(found.boxes, sample.steps, (height, width))
    rows = zip(found.labels.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
    return [
        {"class": artefact.name_of(label), "index": label, "score": score, "box": box}
        for label, score, box in rows
    ]


def mask_png(classes: np.ndarray) -> bytes:
    """Palette PNG whose pixel values are the classes."""
    image = Image.fromarray(classes.astype(np.uint8), mode="P")
    image.putpalette(PALETTE.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
