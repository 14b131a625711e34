"""Losses of detectors: raw maps and the rows of the objects in, a scalar out.

The rows are those of :meth:`quantrim.vision.data.objects.Objects.rows`: float32 (N, M, 6) of class, x1, y1,
x2, y2 in pixels of the canvas, weight; class -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from quantrim.detection import Decoder, DflDecoder, SsdDecoder, YoloV3Decoder, YoloXDecoder
from quantrim.errors import ConfigError, did_you_mean
from quantrim.vision.detection.assignment import Assigned, simota, ssd_match
from quantrim.vision.models.detection.decoded import (
    by_anchor,
    canvas_of,
    cells,
    corners,
    dfl_boxes,
    points,
    rows_of,
    ssd_priors,
    ssd_rows,
    yolov3_boxes,
    yolox_boxes,
)

Maps = Sequence[Tensor]
_binary = partial(F.binary_cross_entropy_with_logits, reduction="none")


@dataclass(frozen=True, slots=True)
class _Objects:
    """Objects of one image: boxes (G, 4), labels (G,), weights (G,)."""

    boxes: Tensor
    labels: Tensor
    weights: Tensor


def _objects(rows: Tensor) -> _Objects:
    real = rows[rows[:, 0] >= 0]
    return _Objects(real[:, 1:5], real[:, 0].long(), real[:, 5])


def yolov3_loss(
    maps: Maps,
    rows: Tensor,
    decoder: YoloV3Decoder,
    *,
    ignore_thresh: float = 0.7,
    iou_thresh: float = 1.0,
    label_smooth: bool = False,
) -> Tensor:
    """YOLOv3's loss as PaddleDetection computes it (ppdet/modeling/losses/yolo_loss.py).

    The best of all anchors by shape learns an object: centre by cross entropy, size by L1 of the logarithm,
    both times 2 - w * h; objectness of all others is pushed down unless their box overlaps an object by more
    than ``ignore_thresh``. Sum over positions, mean over the batch.

    Args:
        maps: (N, A * (5 + C), h, w) of each level.
        rows: objects, see the module.
        decoder: anchors and strides.
        ignore_thresh: overlap above which a candidate that learns no object is left alone.
        iou_thresh: anchors whose shape overlaps the object's by more learn it, too; 1 for the best one alone.
        label_smooth: classes' targets are 1 - d and d with d = min(1 / C, 1 / 40).
    """
    total = rows.new_zeros(())
    matched = _matched_anchors(rows, decoder, iou_thresh)
    for level, one in enumerate(maps):
        total = total + _yolov3_level(one, rows, decoder, level, matched, ignore_thresh, label_smooth)
    return total / len(rows)


def _matched_anchors(rows: Tensor, decoder: YoloV3Decoder, iou_thresh: float) -> Tensor:
    """Whether each anchor, of all levels in order, learns each object by its shape, bool (N, M, A)."""
    anchors = torch.tensor(
        [size for own in decoder.anchors for size in own], dtype=rows.dtype, device=rows.device
    )
    sizes = (rows[..., 3:5] - rows[..., 1:3])[:, :, None]
    common = torch.minimum(sizes, anchors).prod(dim=-1)
    overlap = common / (sizes.prod(dim=-1) + anchors.prod(dim=-1) - common).clamp(min=1e-9)
    best = F.one_hot(overlap.argmax(dim=-1), len(anchors)).bool()
    return (best | (overlap > iou_thresh)) & (rows[..., :1] >= 0)


def _yolov3_level(
    one: Tensor, rows: Tensor, decoder: YoloV3Decoder, level: int, matched: Tensor, ignore: float, smooth: bool
) -> Tensor:
    stride, own = decoder.strides[level], decoder.anchors[level]
    height, width = int(one.shape[2]), int(one.shape[3])
    anchors = torch.tensor(own, dtype=one.dtype, device=one.device)
    values = by_anchor(one, len(own))
    first = sum(map(len, decoder.anchors[:level]))
    image, place, anchor = torch.nonzero(matched[..., first : first + len(own)], as_tuple=True)
    chosen = rows[image, place]
    centre = (chosen[:, 1:3] + chosen[:, 3:5]) / 2 / stride
    cell = torch.minimum(centre.floor(), centre.new_tensor([width - 1, height - 1])).clamp(min=0).long()
    at = (image, anchor, cell[:, 1] * width + cell[:, 0])
    with torch.no_grad():
        boxes = yolov3_boxes(values, anchors, cells(height, width, one), stride)
        free = _overlaps(boxes.flatten(1, 2), rows) <= ignore
    weight = values.new_zeros(values.shape[:3]).index_put_(at, chosen[:, 5])
    objectness = values[..., 4]
    positive = weight > 0
    objects = _binary(objectness, positive.to(values.dtype))
    loss = (objects * torch.where(positive, weight, free.view_as(positive).to(weight.dtype))).sum()
    found = values[at]
    size = chosen[:, 3:5] - chosen[:, 1:3]
    small = 2 - (size / (size.new_tensor([width, height]) * stride)).prod(dim=1)
    shape = (found[:, 2:4] - torch.log(size.clamp(min=1) / anchors[anchor])).abs()
    place_loss = _binary(found[:, :2], centre - cell).sum(dim=1) + shape.sum(dim=1)
    delta = min(1 / decoder.num_classes, 1 / 40) if smooth else 0.0
    wanted = F.one_hot(chosen[:, 0].long(), decoder.num_classes).to(values.dtype) * (1 - 2 * delta) + delta
    class_loss = _binary(found[:, 5:], wanted).sum(dim=1)
    return loss + ((place_loss * small + class_loss) * chosen[:, 5]).sum()


def _overlaps(boxes: Tensor, rows: Tensor) -> Tensor:
    """Largest overlap of each candidate (N, P, 4) with an object of its image, (N, P)."""
    best = [
        box_iou(own, _objects(row).boxes).amax(dim=1) if (row[:, 0] >= 0).any() else own.new_zeros(len(own))
        for own, row in zip(boxes, rows, strict=True)
    ]
    return torch.stack(best)


def yolox_loss(maps: Maps, rows: Tensor, decoder: YoloXDecoder, *, use_l1: bool = False) -> Tensor:
    """YOLOX's loss: 5 (1 - IoU^2) + objectness + classes weighted by overlap, over SimOTA's candidates.

    Args:
        maps: (N, 5 + C, h, w) of each level.
        rows: objects, see the module.
        decoder: strides.
        use_l1: add L1 on the raw offsets and sizes, as the authors do in the last epochs.
    """
    grid, steps = points(maps, decoder.strides)
    values = rows_of(maps)
    boxes = yolox_boxes(values, grid, steps)
    objectness, classes = values[..., 4], values[..., 5:]
    scores = (objectness.detach().sigmoid()[..., None] * classes.detach().sigmoid()).sqrt()
    positive, parts, count = torch.zeros_like(objectness), [], 0.0
    for image, row in enumerate(rows):
        own = _objects(row)
        found = simota(boxes[image].detach(), scores[image], (grid + 0.5) * steps, steps, own.boxes, own.labels)
        weight = own.weights[found.objects]
        positive[image, found.points] = weight
        wanted = own.boxes[found.objects]
        overlap = _paired_iou(boxes[image, found.points], wanted)
        targets = F.one_hot(own.labels[found.objects], decoder.num_classes) * found.overlaps[:, None]
        loss = 5 * (1 - overlap**2) + _binary(classes[image, found.points], targets).sum(dim=1)
        if use_l1:
            raw = _yolox_raw(wanted, grid[found.points], steps[found.points])
            loss = loss + (values[image, found.points, :4] - raw).abs().sum(dim=1)
        parts.append((loss * weight).sum())
        count += float(weight.sum())
    return (torch.stack(parts).sum() + _binary(objectness, positive).sum()) / max(count, 1.0)


def _yolox_raw(boxes: Tensor, grid: Tensor, steps: Tensor) -> Tensor:
    """What the head would say for these boxes."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([centres / steps - grid, torch.log(sizes / steps + 1e-8)], dim=1)


def _paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of boxes (K, 4) with their partners (K, 4)."""
    top, bottom = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    common = (bottom - top).clamp(min=0).prod(dim=1)
    size = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (first, second)]
    return common / (size[0] + size[1] - common + 1e-9)


def gfl_loss(maps: Maps, rows: Tensor, decoder: DflDecoder, *, varifocal: bool = True) -> Tensor:
    """PicoDet's loss: classes learn the overlap, boxes GIoU and the distribution focal loss.

    Li et al., Generalized Focal Loss, arXiv 2006.04388 (quality focal loss, DFL); Zhang et al., VarifocalNet,
    arXiv 2008.13367; weights 1, 2, 0.25 and SimOTA's candidates as in PP-PicoDet, arXiv 2111.00902.

    Args:
        maps: class maps of every level, then those of the sides.
        rows: objects, see the module.
        decoder: strides and bins.
        varifocal: the varifocal loss for classes, else the quality focal loss.
    """
    levels = len(decoder.strides)
    grid, steps = points(maps[:levels], decoder.strides)
    centres = (grid + decoder.offset) * steps
    logits, sides = rows_of(maps[:levels]), rows_of(maps[levels:])
    boxes = dfl_boxes(sides, decoder.bins, centres, steps)
    quality, parts = torch.zeros_like(logits), []
    for image, row in enumerate(rows):
        own = _objects(row)
        scores = logits[image].detach().sigmoid()
        found = simota(boxes[image].detach(), scores, centres, steps, own.boxes, own.labels)
        worth = found.overlaps * own.weights[found.objects]
        quality[image, found.points, own.labels[found.objects]] = worth
        wanted = own.boxes[found.objects]
        shape = generalized_box_iou_loss(boxes[image, found.points], wanted)
        spread = _dfl(sides[image, found.points], _reach(wanted, centres, steps, found), decoder.bins)
        parts.append(((2 * shape + 0.25 * spread) * worth).sum())
    share = logits.sigmoid()
    if varifocal:
        factor = torch.where(quality > 0, quality, 0.75 * share.detach() ** 2)
    else:
        factor = (quality - share.detach()).abs() ** 2
    classes = (_binary(logits, quality) * factor).sum()
    return (classes + torch.stack(parts).sum()) / quality.sum().clamp(min=1)


def _reach(wanted: Tensor, centres: Tensor, steps: Tensor, found: Assigned) -> Tensor:
    """Distances in strides from the points to the sides of their objects, (K, 4)."""
    middle, stride = centres[found.points], steps[found.points]
    return torch.cat([middle - wanted[:, :2], wanted[:, 2:] - middle], dim=1) / stride


def _dfl(sides: Tensor, reach: Tensor, bins: int) -> Tensor:
    """Cross entropy with the two bins beside each distance, mean over the sides, (K,)."""
    logits = torch.unflatten(sides, 1, (4, bins + 1))
    reach = reach.clamp(0, bins - 0.01)
    low = reach.floor().long()
    chances = logits.log_softmax(dim=-1)
    below, above = (chances.gather(2, (low + k)[..., None])[..., 0] for k in (0, 1))
    share = reach - low
    return -((1 - share) * below + share * above).mean(dim=1)


def ssd_loss(maps: Maps, rows: Tensor, decoder: SsdDecoder, *, negatives: float = 3.0) -> Tensor:
    """SSD's multibox loss: smooth L1 of the offsets and cross entropy with the hardest negatives.

    Args:
        maps: class maps of every level, then those of the offsets.
        rows: objects, see the module.
        decoder: default boxes.
        negatives: background boxes that count for each matched one.
    """
    levels = len(decoder.sizes)
    priors = ssd_priors(decoder, maps[:levels], canvas_of(decoder, maps))
    boxes = corners(priors[:, :2], priors[:, 2:])
    logits, offsets = ssd_rows(maps[:levels], decoder.sizes), ssd_rows(maps[levels:], decoder.sizes)
    total, count = rows.new_zeros(()), 0.0
    for image, row in enumerate(rows):
        own = _objects(row)
        match = ssd_match(boxes, own.boxes)
        positive = match >= 0
        targets = torch.zeros_like(match)
        targets[positive] = own.labels[match[positive]] + 1
        classes = F.cross_entropy(logits[image], targets, reduction="none")
        weight = own.weights[match[positive]]
        wanted = _encoded(own.boxes[match[positive]], priors[positive], decoder.weights)
        shape = F.smooth_l1_loss(offsets[image, positive], wanted, reduction="none").sum(dim=1)
        hardest = max(1, int(negatives * int(positive.sum())))
        background = classes[~positive].topk(min(hardest, int((~positive).sum()))).values
        total = total + ((classes[positive] + shape) * weight).sum() + background.sum()
        count += float(weight.sum())
    return total / max(count, 1.0)


def _encoded(boxes: Tensor, priors: Tensor, weights: tuple[float, float]) -> Tensor:
    """Offsets that bring default boxes (K, 4), centre and size, to boxes (K, 4)."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    first = (centres - priors[:, :2]) / priors[:, 2:] * weights[0]
    return torch.cat([first, torch.log(sizes / priors[:, 2:]) * weights[1]], dim=1)


#: What a configuration's ``loss.types`` may say of detectors, and the decoder that each needs.
DETECTION_LOSSES: Mapping[str, tuple[Callable[..., Tensor], type]] = {
    "YOLOv3Loss": (yolov3_loss, YoloV3Decoder),
    "YOLOXLoss": (yolox_loss, YoloXDecoder),
    "GFLLoss": (gfl_loss, DflDecoder),
    "SSDLoss": (ssd_loss, SsdDecoder),
}


def detection_loss(
    decoder: Decoder, kind: str | None = None, **arguments: Any
) -> Callable[[Maps, Tensor], Tensor]:
    """Loss of a detector.

    Args:
        decoder: the model's.
        kind: a name of :data:`DETECTION_LOSSES`; the decoder's own by default.
        arguments: of the loss.

    Raises:
        ConfigError: an unknown name, or a loss of other detectors.
    """
    if kind is None:
        kind = next(name for name, (_, needed) in DETECTION_LOSSES.items() if isinstance(decoder, needed))
    if kind not in DETECTION_LOSSES:
        raise ConfigError(f"unknown loss {kind!r} of a detector{did_you_mean(kind, DETECTION_LOSSES)}")
    loss, needed = DETECTION_LOSSES[kind]
    if not isinstance(decoder, needed):
        raise ConfigError(f"{kind} is no loss of a detector that is decoded by {decoder.type!r}.")
    return cast("Callable[[Maps, Tensor], Tensor]", partial(loss, decoder=decoder, **arguments))
