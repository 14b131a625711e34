"""The scale arithmetic of :mod:`quantrim.ranges.scales` on tensors, for training.

The same formulas, to the last bit: tests hold each to its numpy twin. Intermediate values are float64, as they
are there; what comes out is float32. Gradients flow through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantrim.ranges.scales import DEAD_CHANNEL_SHARE, SMALLEST_SCALE


def affine_scale(low: Tensor, high: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of codes first..last that cover [low, high]; twin of ``activation_scale`` for "u8".

    Args:
        low: smallest value, at most 0, any shape.
        high: largest value, at least 0, of the same shape.
        first: smallest code.
        last: largest code.

    Returns:
        (scale, zero_point), float32.
    """
    low, high = low.double(), high.double()
    scale = torch.clamp((high - low) / (last - first), min=SMALLEST_SCALE).float()
    zero_point = torch.clamp(torch.round(first - low / scale.double()), first, last)
    return scale, zero_point.float()


def symmetric_scale(reach: Tensor, largest: int, cap: float | None = None) -> Tensor:
    """Scale of codes around zero that reach a magnitude; twin of ``activation_scale`` for "s8".

    Args:
        reach: largest magnitude, any shape.
        largest: largest code.
        cap: largest scale, None where there is none.

    Returns:
        float32 scale.
    """
    return torch.clamp(reach.double() / largest, min=SMALLEST_SCALE, max=cap).float()


def abs_max_scale(weight: Tensor, axis: int | None, largest: int, cap: Tensor | None = None) -> Tensor:
    """Scale of a weight that covers every value; twin of ``weight_scales``.

    Channels that are all but dead get no finer scale than others: a tiny one would overflow the bias.

    Args:
        weight: the weight.
        axis: output-channel dimension, or None for one scale per tensor.
        largest: largest code.
        cap: where the weight is clipped, None where it is not.

    Returns:
        float32 scale that broadcasts against the weight.
    """
    weight = weight.detach()
    dims = [dim for dim in range(weight.dim()) if dim != axis]
    peaks = torch.maximum(weight.amax(dim=dims, keepdim=True), -weight.amin(dim=dims, keepdim=True)).float()
    peaks = peaks if cap is None else torch.minimum(peaks, cap)
    floor = torch.clamp(peaks.amax().double() * DEAD_CHANNEL_SHARE, min=largest * SMALLEST_SCALE)
    return torch.maximum(peaks, floor.float()) / largest
