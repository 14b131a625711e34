"""From ranges to scale and zero point, for activations, weights and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantrim.ranges.estimators import Range

#: A channel whose weights are this much smaller than the layer's largest gets no finer scale: its
#: products vanish beside the others, while a tiny scale overflows the int32 bias (ORT issue 21000).
DEAD_CHANNEL_SHARE = 1e-4
#: Smallest scale of an activation; a tensor that is always zero gets it.
SMALLEST_SCALE = 1e-8
#: Scale of a weight whose largest magnitude is one.
UNIT_SCALE = 1 / 127
_INT32_MAX = 2**31 - 1
#: Largest magnitude of an activation's code less its zero point.
_LARGEST_INPUT = 255

WeightAlgo = Literal["abs_max", "mse"]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ActivationScale:
    """Per-tensor quantization: real = (code - zero_point) * scale.

    Attributes:
        scale: positive float32 value.
        zero_point: code of real zero.
        signed: codes are int8 (-128..127), else uint8 (0..255).
    """

    scale: float
    zero_point: int
    signed: bool


def activation_scale(kept: Range, activation: Literal["u8", "s8"]) -> ActivationScale:
    """Scale of an activation.

    Args:
        kept: range to cover.
        activation: "u8", affine over 0..255, or "s8", symmetric over -127..127.
    """
    low, high = min(kept.low, 0.0), max(kept.high, 0.0)
    if activation == "s8":
        return ActivationScale(_float32(max(-low, high) / 127), 0, True)
    scale = _float32((high - low) / 255)
    return ActivationScale(scale, int(np.clip(np.rint(-low / scale), 0, 255)), False)


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE)))


def weight_scales(
    weight: np.ndarray, axis: int | None, algo: WeightAlgo = "abs_max", levels: int = 127
) -> Float32:
    """Symmetric scales of a weight, float32[channels] (or [1] per tensor).

    Args:
        weight: float32, any shape.
        axis: output-channel dimension; None for one scale per tensor.
        algo: "abs_max" covers every value; "mse" takes the clipping with the smallest squared error of
            each channel.
        levels: largest code, 127; 63 with reduced range.
    """
    rows = _rows(weight, axis)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    floor = max(float(largest.max(initial=0.0)) * DEAD_CHANNEL_SHARE, levels * SMALLEST_SCALE)
    scales = np.maximum(largest, floor) / levels
    if algo == "mse":
        scales = _least_squares(rows, scales, levels)
    return scales.astype(np.float32)


def _rows(weight: np.ndarray, axis: int | None) -> np.ndarray:
    if axis is None:
        return weight.reshape(1, -1)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _least_squares(rows: np.ndarray, scales: np.ndarray, levels: int) -> np.ndarray:
    best, best_error = scales, np.full(scales.shape, np.inf)
    for factor in np.linspace(1.0, 0.5, 41):
        trial = scales * factor
        codes = np.clip(np.rint(rows / trial[:, None]), -levels, levels)
        error = np.square(rows - codes * trial[:, None]).sum(axis=1)
        best = np.where(error < best_error, trial, best)
        best_error = np.minimum(error, best_error)
    return best


def widen_for_bias(
    scales: Float32,
    source_scale: float,
    bias: np.ndarray | None,
    weight: np.ndarray | None = None,
    axis: int = 0,
) -> Float32:
    """Weight scales under which bias and products add up within int32 at scale ``source_scale * scale``.

    Engines add in int32 and wrap around to the other sign without a word. A channel with tiny weights and a
    large bias would; its weights are quantized more coarsely instead, by as little as needed. The bias
    counts twice, since correction may still move it; the products count as the most that an input can make
    of them: 255 times the sum of the codes' magnitudes, each a whole step larger by rounding.

    Args:
        scales: float32[channels], or [1] per tensor.
        source_scale: scale of the activation that the weight is multiplied with.
        bias: float32[channels], or None; [groups * channels] behind a grouped transposed convolution.
        weight: float32 weight; None when its products are known to be small.
        axis: output-channel dimension of the weight.
    """
    held, room = np.zeros(1), float(_INT32_MAX)
    if weight is not None:
        rows = np.abs(_rows(weight, axis)).astype(np.float64)
        held = _LARGEST_INPUT * rows.sum(axis=1)
        room -= _LARGEST_INPUT * rows.shape[1]
    biases = np.zeros(1) if bias is None else 2 * np.abs(bias.astype(np.float64)) / source_scale
    if bias is not None and bias.size > scales.size > 1:  # channels of all groups share the scales of one
        biases = biases.reshape(-1, scales.size).max(axis=0)
    if scales.size == 1:
        held, biases = (values.max(keepdims=True, initial=0.0) for values in (held, biases))
    return np.maximum(scales, (held + biases) / room * (1 + 1e-6)).astype(np.float32)


def quantize_weight(weight: np.ndarray, scales: Float32, axis: int | None, levels: int = 127) -> np.ndarray:
    """int8 codes in -levels..levels, rounded half to even, same shape as the weight."""
    shaped = shape_scales(scales, weight.ndim, axis)
    return np.clip(np.rint(weight / shaped), -levels, levels).astype(np.int8)


def quantize_bias(bias: np.ndarray, scales: Float32, source_scale: float) -> np.ndarray:
    """int32 codes of a bias at scale ``source_scale * scales``."""
    codes = np.rint(bias.astype(np.float64) / (np.float64(source_scale) * scales.astype(np.float64)))
    return np.clip(codes, -_INT32_MAX, _INT32_MAX).astype(np.int32)


def of_every_channel(scales: Float32, channels: int) -> Float32:
    """Scales of all output channels: a grouped transposed convolution has those of one group, for each."""
    return scales if scales.size in (1, channels) else np.tile(scales, channels // scales.size)


def shape_scales(scales: Float32, ndim: int, axis: int | None) -> Float32:
    """Scales shaped to broadcast against a weight."""
    if axis is None or scales.size == 1:
        return scales.reshape((1,) * ndim)
    return scales.reshape([-1 if dim == axis else 1 for dim in range(ndim)])
