"""Metrics of a detector on a data set: torch weights and files on engines go through the same code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantrim.detection import (
    Decoder,
    Detections,
    GroundTruth,
    Thresholds,
    VocStyle,
    coco_metrics,
    detect,
    voc_metric,
)
from quantrim.engines import Session
from quantrim.errors import DataError, ModelError
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.data.objects import Objects
from quantrim.vision.data.sample import Sample, undo_boxes
from quantrim.vision.evaluate import sample_groups
from quantrim.vision.models.detection import require_detector
from quantrim.vision.models.detection.decoded import canvas_of

#: Images, float32 (N, C, H, W) → detections in pixels of the canvas.
Detect = Callable[[np.ndarray], list[Detections]]


@dataclass(frozen=True, slots=True)
class DetectionTest:
    """How detectors are judged: ``test_config`` of a configuration.

    Attributes:
        metric: "COCO" (mAP is its AP) or "VOC" (mAP is average precision at an overlap of 0.5).
        map_type: with VOC, the area under the curve.
        thresholds: which candidates are told.
    """

    metric: Literal["COCO", "VOC"] = "COCO"
    map_type: VocStyle = "11point"
    thresholds: Thresholds = field(default_factory=Thresholds)


def torch_detector(
    model: nn.Module, thresholds: Thresholds | None = None, decoder: Decoder | None = None
) -> Detect:
    """Detections of a module, in eval mode, on the device its weights are on."""
    model.eval()
    read = decoder or require_detector(model).decoder
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def run(images: np.ndarray) -> list[Detections]:
        maps = model(torch.from_numpy(images).to(device))
        arrays = [one.float().cpu().numpy() for one in tree_leaves(maps)]
        return detect(read, arrays, _canvas(images), thresholds, len(images))

    return run


def engine_detector(session: Session, decoder: Decoder, thresholds: Thresholds | None = None) -> Detect:
    """Detections of a file on an engine; a fixed batch is filled up and cut again."""
    port, names = session.inputs[0], [output.name for output in session.outputs]
    fixed = port.shape[0]

    def whole(images: np.ndarray) -> list[Detections]:
        outputs = session.run({port.name: images})
        return detect(decoder, [outputs[name] for name in names], _canvas(images), thresholds, len(images))

    def run(images: np.ndarray) -> list[Detections]:
        if fixed is None or fixed == len(images):
            return whole(images)
        found: list[Detections] = []
        for start in range(0, len(images), fixed):
            part = images[start : start + fixed]
            found += whole(np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)]))[: len(part)]
        return found

    return run


def _canvas(images: np.ndarray) -> tuple[int, int]:
    return int(images.shape[2]), int(images.shape[3])


def restored(found: Detections, sample: Sample) -> Detections:
    """Detections in pixels of the original image."""
    height, width = sample.image.shape[:2]
    return replace(found, boxes=undo_boxes(found.boxes, sample.steps, (height, width)))


def detections_of(
    run: Detect, data: VisionData, *, batch_size: int = 8, limit: int | None = None
) -> tuple[list[Detections], list[GroundTruth]]:
    """Detections, in pixels of the original images, and ground truth of a data set.

    Raises:
        DataError: the data set is empty, or has no objects.
        ModelError: the model tells more classes apart than the data set has.
    """
    count = min(len(data), limit or len(data))
    if count == 0:
        raise DataError("the data set to evaluate on is empty.")
    found: list[Detections] = []
    truths: list[GroundTruth] = []
    for group in sample_groups(data, range(count), batch_size):
        images = np.stack([sample.image.transpose(2, 0, 1) for sample, _ in group])
        for (sample, truth), one in zip(group, run(np.ascontiguousarray(images, np.float32)), strict=True):
            if not isinstance(truth, Objects):
                raise DataError("the data set has no boxes; give one of detection.")
            found.append(restored(one, sample))
            truths.append(truth.truth())
    highest = max((int(one.labels.max(initial=-1)) for one in found), default=-1)
    if highest >= data.num_classes:
        raise ModelError(
            f"the model tells {highest + 1} classes apart or more, the data set has {data.num_classes}. "
            "Evaluate it on its own data, or set num_classes."
        )
    return found, truths


@torch.no_grad()
def precision_loss(maps: Sequence[Tensor], rows: Tensor, decoder: Decoder, thresholds: Thresholds) -> Tensor:
    """One minus the mean average precision of each image: of its classes, at overlaps above 0.5.

    A metric of a set is more than the mean of this over its images, but falls and rises with it, and compares
    two states of a model image by image.

    Args:
        maps: raw maps of a batch.
        rows: objects, float32 (N, M, 6) as losses read them.
        decoder: what the maps mean.
        thresholds: which boxes count.

    Returns:
        float64 (N,); 0 for an image without objects.
    """
    arrays = [one.float().cpu().numpy() for one in maps]
    told = detect(decoder, arrays, canvas_of(decoder, maps), thresholds, len(rows))
    losses = []
    for found, row in zip(told, rows.cpu().numpy(), strict=True):
        real = row[row[:, 0] >= 0]
        truth = GroundTruth.of(real[:, 1:5], real[:, 0].astype(np.int64))
        mean = voc_metric([found], [truth], decoder.num_classes, style="area").mean
        losses.append(1 - mean if len(real) else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


def evaluate_boxes(
    run: Detect,
    data: VisionData,
    *,
    test: DetectionTest | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> dict[str, float | list[float]]:
    """Metrics of a detector over a data set.

    Returns:
        ``mAP`` (the one that decides), COCO's AP, AP50, AP75, ... as far as there are boxes of that size, VOC's
        ``mAP_11point``, ``mAP_integral`` and ``mAP_area``, ``class_ap`` (VOC's, of the chosen style; -1, as
        COCO has it, for a class without ground truth) and ``images``.

    Raises:
        DataError, ModelError: as :func:`detections_of`.
    """
    found, truths = detections_of(run, data, batch_size=batch_size, limit=limit)
    return metrics_of_boxes(found, truths, data.num_classes, test)


def metrics_of_boxes(
    found: Sequence[Detections],
    truths: Sequence[GroundTruth],
    num_classes: int,
    test: DetectionTest | None = None,
) -> dict[str, float | list[float]]:
    """What :func:`evaluate_boxes` returns, of detections and ground truth that are known already."""
    judged = test or DetectionTest()
    measured = coco_metrics(found, truths, num_classes)
    coco = {name: value for name, value in measured.items() if math.isfinite(value)}
    styles: tuple[VocStyle, ...] = ("11point", "integral", "area")
    voc = {style: voc_metric(found, truths, num_classes, style=style) for style in styles}
    chosen = voc[judged.map_type]
    return {
        "mAP": coco.get("AP", 0.0) if judged.metric == "COCO" else chosen.mean,
        **coco,
        **{f"mAP_{style}": metric.mean for style, metric in voc.items()},
        "class_ap": [-1.0 if value is None else value for value in chosen.by_class],
        "images": float(len(found)),
    }
