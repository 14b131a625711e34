"""Average precision: PASCAL VOC's in three readings, and COCO's.

The three readings of VOC share the matching and differ in the area under the curve: "11point" (VOC2007),
"area" (VOC2010 and later: under the envelope that never rises), and "integral" (PaddleDetection's: the sum
of precision times step of recall, without the envelope, hence never above "area").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from quantrim.detection.boxes import Detections, GroundTruth, iou_matrix
from quantrim.errors import DataError

VocStyle = Literal["11point", "integral", "area"]


@dataclass(frozen=True, slots=True)
class VocMetric:
    """Mean average precision and that of each class.

    Attributes:
        mean: over the classes that have ground truth; 0 without any.
        by_class: average precision, None for a class without ground truth.
    """

    mean: float
    by_class: tuple[float | None, ...]


def voc_metric(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    num_classes: int,
    *,
    style: VocStyle = "11point",
    iou: float = 0.5,
    pixel_corners: bool = True,
) -> VocMetric:
    """PASCAL VOC's average precision as PaddleDetection computes it (ppdet/metrics/map_utils.py).

    A detection hits if its best box of the class overlaps it by more than ``iou`` (strictly); a second hit on
    a box is a false positive; one on a difficult box counts as nothing.

    Args:
        detections: of each image.
        truths: of each image, in the same order.
        num_classes: classes there are.
        style: area under the curve, see the module.
        iou: threshold.
        pixel_corners: widths are x2 - x1 + 1, as where boxes are given in pixels of the annotation files.

    Raises:
        DataError: there are not as many detections as truths.
    """
    if len(detections) != len(truths):
        raise DataError(f"detections of {len(detections)} images, ground truth of {len(truths)}.")
    by_class = tuple(
        _class_precision(detections, truths, label, style, iou, float(pixel_corners))
        for label in range(num_classes)
    )
    known = [value for value in by_class if value is not None]
    return VocMetric(float(np.mean(known)) if known else 0.0, by_class)


def _class_precision(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    label: int,
    style: VocStyle,
    iou: float,
    offset: float,
) -> float | None:
    wanted = sum(int((~truth.difficult[truth.labels == label]).sum()) for truth in truths)
    if wanted == 0:
        return None
    scores, hits = [], []
    for found, truth in zip(detections, truths, strict=True):
        for score, hit in _judged(found, truth, label, iou, offset):
            scores.append(score)
            hits.append(hit)
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    ordered = np.array(hits, bool)[order]
    right, wrong = np.cumsum(ordered), np.cumsum(~ordered)
    precision = right / np.maximum(right + wrong, 1)
    return area_under(right / wanted, precision, style)


def _judged(
    found: Detections, truth: GroundTruth, label: int, iou: float, offset: float
) -> Iterator[tuple[float, bool]]:
    """Score, and whether it hits, of each detection of a class that counts, best first."""
    own = found[found.labels == label]
    own = own[np.argsort(-own.scores, kind="stable")]
    rows = np.flatnonzero(truth.labels == label)
    overlaps = iou_matrix(own.boxes, truth.boxes[rows], offset)
    taken = np.zeros(len(rows), bool)
    for score, overlap in zip(own.scores, overlaps, strict=True):
        best = int(overlap.argmax()) if len(rows) else -1
        if best < 0 or not overlap[best] > iou:
            yield float(score), False
        elif not truth.difficult[rows[best]]:
            yield float(score), not taken[best]
            taken[best] = True


def area_under(recall: np.ndarray, precision: np.ndarray, style: VocStyle) -> float:
    """Area under a precision-recall curve, points in order of falling score."""
    if style == "11point":
        above = [precision[recall >= level - 1e-12] for level in np.arange(11) / 10]
        return float(np.mean([points.max(initial=0.0) for points in above]))
    if style == "area":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


#: COCO's summary in its order, without the areas' recalls.
_COCO = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")


def coco_metrics(
    detections: Sequence[Detections], truths: Sequence[GroundTruth], num_classes: int
) -> dict[str, float]:
    """COCO's AP and AR by faster-coco-eval; "difficult" boxes are crowds. -1, COCO's "no such box", is nan.

    Args:
        detections: of each image.
        truths: of each image, in the same order.
        num_classes: classes there are.

    Raises:
        DataError: there are not as many detections as truths.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if len(detections) != len(truths):
        raise DataError(f"detections of {len(detections)} images, ground truth of {len(truths)}.")
    if not any(map(len, truths)):
        return dict.fromkeys(_COCO, float("nan"))
    if not any(map(len, detections)):
        return dict.fromkeys(_COCO, 0.0)
    known = COCO(_annotations(truths, num_classes))
    found = known.loadRes(coco_results(detections, range(1, len(detections) + 1)))
    judge = COCOeval_faster(known, found, "bbox", print_function=lambda *_: None)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    values = [float(value) if value >= 0 else float("nan") for value in judge.stats]
    return dict(zip(_COCO, values, strict=False))


def _annotations(truths: Sequence[GroundTruth], num_classes: int) -> dict[str, Any]:
    """COCO's dictionary of ground truth; images and annotations count from 1, classes from 0."""
    annotations: list[dict[str, Any]] = []
    for image, truth in enumerate(truths, 1):
        for box, label, crowd in zip(truth.boxes, truth.labels, truth.difficult, strict=True):
            x, y, width, height = (float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(crowd),
                }
            )
    return {
        "info": {},
        "images": [{"id": image} for image in range(1, len(truths) + 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
    }


def coco_results(detections: Sequence[Detections], images: Sequence[int] | range) -> list[dict[str, Any]]:
    """COCO's result format: one entry a box, with x, y, width, height.

    Args:
        detections: of each image.
        images: number of each image.
    """
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": [round(float(v), 3) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
            "score": round(float(score), 6),
        }
        for image, found in zip(images, detections, strict=True)
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]
