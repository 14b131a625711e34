"""Losses of segmentation and classification; all take logits (N, C, ...) and labels (N, ...).

Each is a function of logits, labels and the label to ignore. :class:`Weighted` joins one loss for each
head of a model with its coefficient, as PaddleSeg's ``loss: {types, coef}`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from quantrim.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    smoothing: float = 0.0,
    weight: Sequence[float] | None = None,
) -> Tensor:
    """Mean cross entropy over the labels that count; 0 where there are none.

    With ``weight``, one a class, it is the weighted mean: divided by the sum of the weights of the labels.
    """
    classes = None if weight is None else torch.tensor(weight, dtype=logits.dtype, device=logits.device)
    total = F.cross_entropy(
        logits, labels, classes, ignore_index=ignore_index, reduction="sum", label_smoothing=smoothing
    )
    counted = labels[labels != ignore_index]
    if classes is None:
        return total / max(1, counted.numel())
    return total / classes[counted].sum().clamp(min=1e-6)


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    weight: float | Literal["dynamic"] | None = None,
    pos_weight: float | Literal["dynamic"] | None = None,
) -> Tensor:
    """Binary cross entropy of each class against the rest, mean over the labels that count.

    Labels become one channel a class; with a single channel of logits they are 0 and 1 themselves.

    Args:
        logits: float (N, C, ...).
        labels: int64 (N, ...).
        ignore_index: label that doesn't count.
        weight: factor of the loss; "dynamic": positives and negatives each weigh twice the share of the
            others, so that both count the same however rare one is.
        pos_weight: factor of the positives; "dynamic": twice the share of the negatives.
    """
    kept = (labels != ignore_index)[:, None].expand_as(logits)
    known = torch.where(labels == ignore_index, 0, labels)
    if logits.shape[1] == 1:
        truth = known[:, None].to(logits.dtype)
    else:
        truth = F.one_hot(known, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    positive = (truth * kept).sum() / kept.sum().clamp(min=1)
    factor = 2 * (1 - positive) if pos_weight == "dynamic" else pos_weight
    scale = 2 * ((1 - positive) * truth + positive * (1 - truth)) if weight == "dynamic" else weight
    positives = None if factor is None else torch.as_tensor(factor, dtype=logits.dtype, device=logits.device)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none", pos_weight=positives)
    each = each if scale is None else each * scale
    return (each * kept).sum() / kept.sum().clamp(min=1)


def ohem_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, thresh: float = 0.7, min_kept: int = 10_000
) -> Tensor:
    """Cross entropy over hard pixels: true-class probability below ``thresh``, at least ``min_kept`` of them.

    Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining" (2016), in
    the pixel form that PaddleSeg uses.
    """
    each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none").flatten()
    each = each[(labels != ignore_index).flatten()]
    if each.numel() == 0:
        return logits.sum() * 0
    limit = -torch.log(torch.tensor(thresh, device=each.device))
    kth = torch.topk(each, min(min_kept, each.numel())).values[-1]
    return each[each >= torch.minimum(limit, kth)].mean()


def bootstrapped_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, min_K: int = 4096, loss_th: float = 0.3
) -> Tensor:
    """Mean over the losses of each sample above ``loss_th``, over its ``min_K`` largest if those are more.

    Wu et al., "Bridging Category-level and Instance-level Semantic Image Segmentation" (2016).
    """
    each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none").flatten(1)
    ordered = each.sort(dim=1, descending=True).values
    least = min(min_K, ordered.shape[1] - 1)
    above = ordered > loss_th
    first = torch.arange(ordered.shape[1], device=ordered.device) < least
    chosen = torch.where(above[:, least : least + 1], above, first.expand_as(above))
    return ((ordered * chosen).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)).mean()


def dice_loss(logits: Tensor, labels: Tensor, *, ignore_index: int = 255, smooth: float = 1.0) -> Tensor:
    """1 - mean over classes of 2 |P T| / (|P| + |T|) with probabilities P (Milletari et al., V-Net, 2016)."""
    probabilities, truth = _masked(logits, labels, ignore_index)
    overlap = (probabilities * truth).sum(dim=1)
    return 1 - ((2 * overlap + smooth) / (probabilities.sum(dim=1) + truth.sum(dim=1) + smooth)).mean()


def focal_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, gamma: float = 2.0, alpha: float = 1.0
) -> Tensor:
    """Cross entropy times ``alpha (1 - p)^gamma`` (Lin et al., Focal Loss, 2017)."""
    each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    weighted = alpha * (1 - torch.exp(-each)) ** gamma * each
    return weighted.sum() / (labels != ignore_index).sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Convex extension of the Jaccard loss, mean over the classes present (Berman et al., 2018)."""
    probabilities, truth = _masked(logits, labels, ignore_index)
    present = truth.sum(dim=1) > 0
    if not bool(present.any()):
        return logits.sum() * 0
    errors = (truth - probabilities).abs()[present]
    ordered, order = errors.sort(dim=1, descending=True)
    return (ordered * _lovasz_gradient(truth[present].gather(1, order))).sum(dim=1).mean()


def _lovasz_gradient(truth: Tensor) -> Tensor:
    total = truth.sum(dim=1, keepdim=True)
    jaccard = 1 - (total - truth.cumsum(dim=1)) / (total + (1 - truth).cumsum(dim=1))
    return torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)


def _masked(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot truth, both (C, pixels), without ignored pixels."""
    classes = logits.shape[1]
    kept = (labels != ignore_index).flatten()
    probabilities = logits.float().softmax(dim=1).transpose(0, 1).reshape(classes, -1)[:, kept]
    truth = F.one_hot(labels.flatten()[kept], classes).transpose(0, 1).to(probabilities.dtype)
    return probabilities, truth


def mixed(parts: Sequence[tuple[Loss, float]]) -> Loss:
    """Weighted sum of several losses of one head."""

    def total(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([coef * loss(logits, labels) for loss, coef in parts]).sum()

    return total


@dataclass
class Weighted:
    """One loss for each head of a model.

    Attributes:
        losses: a loss for each output, or one for all of them.
        coef: coefficient of each output.
        fail: makes the error from a message that says what is wrong with the coefficients.
        parts: weighted losses of the last call, by output, without gradient.

    Raises:
        ConfigError: when called, if the model has another number of outputs.
    """

    losses: Sequence[Loss]
    coef: Sequence[float]
    fail: Callable[[str], Exception] = ConfigError
    parts: list[Tensor] = field(default_factory=list)

    def __call__(self, outputs: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Weighted sum over the outputs, a scalar."""
        heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        each = list(self.losses) * len(heads) if len(self.losses) == 1 else list(self.losses)
        if len(each) != len(heads) or len(self.coef) != len(heads):
            raise self.fail(
                f"the model has {len(heads)} outputs, but loss has {len(self.losses)} types and "
                f"{len(self.coef)} coefficients. Give one of each for every output."
            )
        parts = [c * loss(head, labels) for loss, head, c in zip(each, heads, self.coef, strict=True)]
        self.parts = [part.detach() for part in parts]
        return torch.stack(parts).sum()
