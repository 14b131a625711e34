"""Which candidates learn which objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

#: Candidates whose overlaps are summed to the number that an object gets.
_TOP = 10
_RADIUS = 2.5
_OUTSIDE = 1e5


@dataclass(frozen=True, slots=True)
class Assigned:
    """Candidates of an image that learn an object.

    Attributes:
        points: int64 (K,), positions of the candidates.
        objects: int64 (K,), rows of the objects.
        overlaps: float32 (K,), IoU of each candidate's box with its object.
    """

    points: Tensor
    objects: Tensor
    overlaps: Tensor


@torch.no_grad()
def simota(
    boxes: Tensor, scores: Tensor, centres: Tensor, steps: Tensor, truth: Tensor, labels: Tensor
) -> Assigned:
    """SimOTA: each object gets its cheapest candidates, as many as its best overlaps add up to.

    Ge et al., YOLOX, section 2.1, with the costs and constants of the authors' code: class cost plus three
    times the logarithm of the overlap; candidates lie in the box or within 2.5 strides of its centre, and
    those not in both come last.

    Args:
        boxes: predicted, (P, 4).
        scores: predicted, (P, C) in 0..1.
        centres: points in pixels, (P, 2).
        steps: their strides, (P, 1).
        truth: boxes of the objects, (G, 4).
        labels: their classes, int64 (G,).
    """
    inside, central = _inside(centres, truth), _central(centres, steps, truth)
    rows = torch.nonzero((inside | central).any(dim=0))[:, 0]
    if not len(rows):
        none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return Assigned(none, none, boxes.new_zeros(0))
    overlap = box_iou(truth, boxes[rows])
    wanted = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
    pair = scores[rows][None].expand(len(truth), -1, -1).clamp(1e-6, 1 - 1e-6)
    each = F.binary_cross_entropy(pair, wanted[:, None].expand_as(pair), reduction="none").sum(dim=-1)
    outside = ~(inside & central)[:, rows]
    cost = each - 3 * torch.log(overlap + 1e-8) + _OUTSIDE * outside
    chosen = _cheapest(cost, overlap)
    objects = cost.masked_fill(~chosen, torch.inf).argmin(dim=0)
    taken = chosen.any(dim=0)
    found = torch.nonzero(taken)[:, 0]
    return Assigned(rows[found], objects[found], overlap[objects[found], found])


def _inside(centres: Tensor, truth: Tensor) -> Tensor:
    """Whether each point lies in each box, bool (G, P)."""
    x, y = centres[:, 0], centres[:, 1]
    sides = (x - truth[:, :1], y - truth[:, 1:2], truth[:, 2:3] - x, truth[:, 3:] - y)
    return torch.stack(sides).amin(dim=0) > 0


def _central(centres: Tensor, steps: Tensor, truth: Tensor) -> Tensor:
    """Whether each point lies near each box's centre, bool (G, P)."""
    middle = (truth[:, :2] + truth[:, 2:]) / 2
    return ((centres[None] - middle[:, None]).abs() < _RADIUS * steps[None]).all(dim=-1)


def _cheapest(cost: Tensor, overlap: Tensor) -> Tensor:
    """bool (G, P): the k cheapest candidates of each object, k the sum of its ten best overlaps."""
    top = overlap.topk(min(_TOP, overlap.shape[1]), dim=1).values
    counts = top.sum(dim=1).int().clamp(min=1, max=cost.shape[1])
    order = cost.argsort(dim=1, stable=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(cost.shape[1], device=cost.device).expand_as(order)
    )
    return ranks < counts[:, None]


@torch.no_grad()
def ssd_match(priors: Tensor, truth: Tensor, threshold: float = 0.5) -> Tensor:
    """SSD's matching: default boxes learn what they overlap by ``threshold``, and each object has its best one.

    Args:
        priors: default boxes as corners, (P, 4).
        truth: boxes of the objects, (G, 4).
        threshold: least overlap.

    Returns:
        int64 (P,), the row of the object, -1 for background.
    """
    if not len(truth):
        return torch.full((len(priors),), -1, dtype=torch.int64, device=priors.device)
    overlap = box_iou(truth, priors)
    best, objects = overlap.max(dim=0)
    objects[best < threshold] = -1
    objects[overlap.argmax(dim=1)] = torch.arange(len(truth), device=priors.device)
    return objects
