"""Adaptive rounding: choose up or down for each weight so that the layer's output stays right.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020): a soft rounding h(V)
in [0, 1] is trained by gradient descent against the float layer's output, with the layer's input as the
quantized layers before give it, and pushed to 0 or 1 by a regulariser whose sharpness grows.

The layer is trained on a random sample of its output positions, taken as rows of a matrix product, so
that the cost does not grow with the image. The result is kept only if its error over all sampled
positions is below that of rounding to nearest.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from quantrim.post_training.refine.walk import Step
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import shape_scales

_POSITIONS = 4096
_BATCH = 512
_ITERATIONS = 400
_WARM_UP = 0.2
_LEARNING_RATE = 1e-2
_ROUNDING_WEIGHT = 1e-2
_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1


def adaptive_rounding(step: Step, *, iterations: int = _ITERATIONS, seed: int = 0) -> WeightCodes:
    """Codes of a layer after adaptive rounding; unchanged for layers that are no plain conv or product.

    Args:
        step: the layer, with its quantized input and float output.
        iterations: gradient steps.
        seed: of the sampled positions and batches.
    """
    rows = _as_product(step, np.random.default_rng(seed))
    if rows is None:
        return step.codes
    patches, targets = (torch.from_numpy(array) for array in rows)
    groups = patches.shape[1]
    weight = torch.from_numpy(_matrix(step, step.weight, groups).copy())
    scales = torch.from_numpy(_matrix(step, np.broadcast_to(_scales(step), step.weight.shape).copy(), groups))
    low = torch.floor(weight / scales)
    rest = (weight / scales - low).clamp(0.01, 0.99)
    nearest = torch.from_numpy(_matrix(step, step.codes.codes.astype(np.float32), groups).copy())
    soft = _train(patches, targets, low, rest, scales, iterations, torch.Generator().manual_seed(seed))
    rounded = torch.clamp(low + (soft >= 0.5), -127, 127)
    if _error(patches, targets, rounded * scales) >= _error(patches, targets, nearest * scales):
        return step.codes
    codes = _unmatrix(step, rounded.numpy()).astype(np.int8)
    return dataclasses.replace(step.codes, codes=codes)


def _train(
    patches: torch.Tensor,
    targets: torch.Tensor,
    low: torch.Tensor,
    rest: torch.Tensor,
    scales: torch.Tensor,
    iterations: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Trained soft rounding in [0, 1], same shape as ``low``."""
    span = _STRETCH_HIGH - _STRETCH_LOW
    start = -torch.log(span / (rest - _STRETCH_LOW) - 1)
    variable = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([variable], lr=_LEARNING_RATE)
    unit = float(targets.var()) + 1e-12
    for iteration in range(iterations):
        chosen = torch.randint(len(patches), (min(_BATCH, len(patches)),), generator=generator)
        soft = (torch.sigmoid(variable) * span + _STRETCH_LOW).clamp(0, 1)
        output = torch.einsum("pgk,gok->pgo", patches[chosen], (low + soft).clamp(-127, 127) * scales)
        loss = torch.mean((output - targets[chosen]) ** 2) / unit
        progress = iteration / iterations
        if progress > _WARM_UP:
            sharpness = 2 + 18 * (1 - (progress - _WARM_UP) / (1 - _WARM_UP))
            loss = loss + _ROUNDING_WEIGHT * torch.mean(1 - (2 * soft - 1).abs() ** sharpness)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return (torch.sigmoid(variable) * span + _STRETCH_LOW).clamp(0, 1)


def _error(patches: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> float:
    return float(torch.mean((torch.einsum("pgk,gok->pgo", patches, weight) - targets) ** 2))


def _scales(step: Step) -> np.ndarray:
    return shape_scales(step.codes.scales, step.weight.ndim, step.codes.axis)


def _matrix(step: Step, weight: np.ndarray, groups: int) -> np.ndarray:
    """Weight as (groups, outputs of a group, inputs of a group)."""
    rows = np.moveaxis(weight, step.node.weight.axis, 0)  # type: ignore[union-attr]
    return rows.reshape(groups, rows.shape[0] // groups, -1)


def _unmatrix(step: Step, matrix: np.ndarray) -> np.ndarray:
    axis = step.node.weight.axis  # type: ignore[union-attr]
    moved = np.moveaxis(step.weight, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


def _as_product(step: Step, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Sampled rows of the layer: inputs (P, groups, K) and outputs without bias (P, groups, O)."""
    if step.node.op == "linear":
        flat = step.x.reshape(-1, step.x.shape[-1])
        target = step.y.reshape(-1, step.y.shape[-1])
        chosen = generator.permutation(len(flat))[:_POSITIONS]
        return flat[chosen][:, None, :], _without_bias(step, target[chosen])[:, None, :]
    if step.node.op != "conv" or step.weight.ndim != 4:
        return None
    groups = step.operator.attributes.get_int("group", 1)
    count = step.y.shape[0] * step.y.shape[2] * step.y.shape[3]
    picks = generator.permutation(count)[:_POSITIONS]
    image, row, column = np.unravel_index(picks, (step.y.shape[0], step.y.shape[2], step.y.shape[3]))
    target = _without_bias(step, step.y[image, :, row, column])
    patches = _patches(step, image, row, column)
    return (
        patches.reshape(len(picks), groups, -1),
        target.reshape(len(picks), groups, -1),
    )


def _without_bias(step: Step, target: np.ndarray) -> np.ndarray:
    return target if step.bias is None else target - step.bias


def _patches(step: Step, image: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Inputs (P, C, kh, kw) that make the chosen outputs of a 2-D convolution."""
    attributes = step.operator.attributes
    height, width = step.weight.shape[2:]
    stride = attributes.get_ints("strides", [1, 1])
    dilation = attributes.get_ints("dilations", [1, 1])
    pads = attributes.get_ints("pads", [0, 0, 0, 0])
    padded = np.pad(step.x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    rows = row[:, None] * stride[0] + np.arange(height)[None, :] * dilation[0]
    columns = column[:, None] * stride[1] + np.arange(width)[None, :] * dilation[1]
    picked = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return np.ascontiguousarray(picked.transpose(0, 3, 1, 2))
