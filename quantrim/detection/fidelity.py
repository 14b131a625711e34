"""How alike two detectors are, told in boxes: what a quantized file keeps of the float one's detections.

Average precision against labels can rise while a file becomes less faithful (it over-detects), and an arg max
over thousands of candidates means nothing. Three numbers tell more: average precision against the boxes that
the float model is sure of, the share of them that is still there, and how many there are in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantrim.detection.average_precision import coco_metrics
from quantrim.detection.boxes import Detections, GroundTruth, iou_matrix


@dataclass(frozen=True, slots=True)
class BoxFidelity:
    """What a file keeps of another's detections.

    Attributes:
        ap: COCO's AP of the file's detections, the reference's confident boxes taken for truth.
        ap50: the same at an overlap of 0.5 alone.
        kept: share of the reference's confident boxes that the file tells with the same class, an overlap of
            0.5 and a score above the same threshold; 1 where the reference has none.
        mean_iou: mean overlap of those pairs; 0 without any.
        boxes: how many boxes of the file are above the threshold.
        reference_boxes: how many of the reference's are.
    """

    ap: float
    ap50: float
    kept: float
    mean_iou: float
    boxes: int
    reference_boxes: int


def box_fidelity(
    reference: Sequence[Detections],
    candidate: Sequence[Detections],
    num_classes: int,
    *,
    score: float = 0.3,
) -> BoxFidelity:
    """Compare the detections of two models on the same images.

    Args:
        reference: of each image, by the float model.
        candidate: of each image, by the other one; with all its scores, since AP looks at weak ones too.
        num_classes: classes there are.
        score: above it a detection is a confident one.
    """
    sure = [found.above(score) for found in reference]
    truths = [GroundTruth.of(one.boxes, one.labels) for one in sure]
    metrics = coco_metrics(candidate, truths, num_classes)
    wanted = sum(map(len, sure))
    confident = [found.above(score) for found in candidate]
    overlaps = [overlap for one, other in zip(sure, confident, strict=True) for overlap in _matched(one, other)]
    result = BoxFidelity(
        ap=metrics["AP"],
        ap50=metrics["AP50"],
        kept=len(overlaps) / wanted if wanted else 1.0,
        mean_iou=float(np.mean(overlaps)) if overlaps else 0.0,
        boxes=sum(map(len, confident)),
        reference_boxes=wanted,
    )
    return result if wanted else replace(result, ap=1.0, ap50=1.0)


def _matched(reference: Detections, candidate: Detections, least: float = 0.5) -> list[float]:
    """Overlaps of pairs of the same class, greedily from the largest; every box is in one pair at most."""
    overlap = iou_matrix(reference.boxes, candidate.boxes)
    overlap = np.where(reference.labels[:, None] == candidate.labels[None], overlap, 0.0)
    rows, columns = np.nonzero(overlap >= least)
    free = np.ones(len(reference), bool), np.ones(len(candidate), bool)
    pairs: list[float] = []
    for place in np.argsort(-overlap[rows, columns], kind="stable"):
        row, column = rows[place], columns[place]
        if free[0][row] and free[1][column]:
            free[0][row] = free[1][column] = False
            pairs.append(float(overlap[row, column]))
    return pairs
