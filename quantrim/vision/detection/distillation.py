"""What a detector learns from another one's maps: its scores, and its boxes where it is sure of an object.

A soft-max over the channels of a map, as classifiers are distilled with, would mix offsets, objectness and
classes of all anchors. So the maps are taken apart as their decoder does, and boxes count by the teacher's
score: "objectness scaled" distillation (Mehta and Ozturk, "Object detection at 200 FPS", arXiv 1805.06361),
which PaddleDetection's distilled YOLOv3 follows, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from quantrim.detection import Decoder, DflDecoder, SsdDecoder, YoloV3Decoder, YoloXDecoder
from quantrim.errors import ModelError
from quantrim.vision.models.detection.decoded import by_anchor, rows_of, ssd_rows

Maps = Sequence[Tensor]
#: Least sum of the teacher's scores that a batch is divided by.
_LEAST = 1.0


def box_distillation(student: Maps, teacher: Maps, decoder: Decoder) -> Tensor:
    """Distance of a student's maps from a teacher's; zero where they are equal.

    Divergence of the scores of all candidates, plus the distance of the raw offsets (smooth L1; of
    distributions their divergence), weighted by the teacher's best score of each; by the sum of those scores.

    Args:
        student: raw maps of the detector that learns.
        teacher: raw maps of the same shapes.
        decoder: what they mean.

    Returns:
        A scalar.

    Raises:
        ModelError: the decoder belongs to files that decode themselves.
    """
    wanted = [one.detach() for one in teacher]
    if isinstance(decoder, SsdDecoder):
        levels = len(decoder.sizes)
        ours, theirs = (ssd_rows(maps[:levels], decoder.sizes) for maps in (student, wanted))
        sure = theirs.softmax(dim=-1)[..., 1:].amax(dim=-1)
        offsets = (ssd_rows(maps[levels:], decoder.sizes) for maps in (student, wanted))
        return _weighed(_among(ours, theirs), _apart(*offsets), sure)
    if isinstance(decoder, DflDecoder):
        levels = len(decoder.strides)
        ours, theirs = (rows_of(maps[:levels]) for maps in (student, wanted))
        sides = (torch.unflatten(rows_of(maps[levels:]), 2, (4, -1)) for maps in (student, wanted))
        return _weighed(_binary(ours, theirs), _among(*sides).sum(dim=-1), theirs.sigmoid().amax(dim=-1))
    ours, theirs = (_yolo_rows(maps, decoder) for maps in (student, wanted))
    objects, classes = theirs[..., 4].sigmoid(), theirs[..., 5:].sigmoid()
    sure = objects * classes.amax(dim=-1)
    boxes = _apart(ours[..., :4], theirs[..., :4]) + _binary(ours[..., 5:], theirs[..., 5:])
    return _weighed(_binary(ours[..., 4:5], theirs[..., 4:5]), boxes, sure)


def _yolo_rows(maps: Maps, decoder: Decoder) -> Tensor:
    """Candidates (N, P, 5 + C) of offsets, objectness and classes."""
    if isinstance(decoder, YoloV3Decoder):
        levels = zip(maps, decoder.anchors, strict=True)
        return torch.cat([by_anchor(one, len(own)).flatten(1, 2) for one, own in levels], dim=1)
    if isinstance(decoder, YoloXDecoder):
        return rows_of(maps)
    raise ModelError(f"decoder {decoder.type!r} reads files that decode themselves; there is nothing to learn.")


def _weighed(everywhere: Tensor, at_objects: Tensor, sure: Tensor) -> Tensor:
    """Losses (N, P) of all candidates and of those that show objects, by the teacher's scores (N, P)."""
    return (everywhere.sum() + (at_objects * sure).sum()) / sure.sum().clamp(min=_LEAST)


def _binary(ours: Tensor, theirs: Tensor) -> Tensor:
    """Divergence of sigmoids, summed over the last axis; zero where the logits are equal."""
    wanted = theirs.sigmoid()
    each = F.binary_cross_entropy_with_logits(ours, wanted, reduction="none")
    return (each - F.binary_cross_entropy_with_logits(theirs, wanted, reduction="none")).sum(dim=-1)


def _among(ours: Tensor, theirs: Tensor) -> Tensor:
    """Kullback-Leibler divergence of soft-maxes over the last axis."""
    pair = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
    return F.kl_div(*pair, reduction="none", log_target=True).sum(dim=-1)


def _apart(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.smooth_l1_loss(ours, theirs, reduction="none").sum(dim=-1)
