"""Quantizers of weights: symmetric codes, per output channel or per tensor.

The weight is quantized raw, before the BatchNorm that follows its layer: a scale of each output channel
commutes with BatchNorm, so folding the one into the other afterwards changes no code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from quantrim.errors import ModelError
from quantrim.qat.config import QATConfig, fresh
from quantrim.qat.quantizers.fake_quantize import (
    clip,
    clipped_codes,
    fake_quantize,
    learned_step,
    straight_through,
)
from quantrim.qat.quantizers.state import Float32State, project
from quantrim.ranges.scales import SMALLEST_SCALE
from quantrim.ranges.torch_mirror import abs_max_scale


def largest_code(bits: int) -> int:
    """127 for 8 bits: the codes are symmetric, so that a BatchNorm may flip their sign."""
    return 2 ** (bits - 1) - 1


class WeightQuantizer(Float32State):
    """Scale = largest magnitude of each channel, anew at every step.

    Args:
        bits: width of the codes.
        axis: output-channel dimension, or None for one scale per tensor.
    """

    def __init__(self, bits: int, axis: int | None) -> None:
        super().__init__()
        self.largest, self.axis = largest_code(bits), axis
        self.observing = True

    def start(self, weight: Tensor) -> None:
        """Start from the weight as it is; only quantizers with a state of their own do something."""

    def scale(self, weight: Tensor) -> Tensor:
        """float32 scale that broadcasts against the weight, as used in evaluation."""
        return abs_max_scale(weight, self.axis, self.largest)

    def forward(self, weight: Tensor) -> Tensor:
        """Fake-quantized weight."""
        with torch.no_grad():
            scale = self.scale(weight)
        return straight_through(weight, scale)


class SignWeight(WeightQuantizer):
    """One bit: the sign of each weight times the mean magnitude of its channel.

    Rastegari et al., "XNOR-Net" (arXiv 1603.05279), whose scale makes the squared error smallest. The gradient
    passes straight through.
    """

    def __init__(self, axis: int | None) -> None:
        super().__init__(2, axis)

    @override
    def scale(self, weight: Tensor) -> Tensor:
        dims = [dim for dim in range(weight.dim()) if dim != self.axis]
        return weight.detach().float().abs().mean(dim=dims, keepdim=True).clamp_min(SMALLEST_SCALE)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        signs = torch.where(weight.detach() < 0, -1.0, 1.0)
        return weight + (signs * self.scale(weight) - weight).detach()


def scale_of(quantizer: nn.Module, weight: Tensor, axis: int) -> Tensor:
    """What a quantizer's ``scale(weight)`` says, as a tensor that broadcasts against the weight.

    Args:
        quantizer: with a method ``scale(weight)``, perhaps the user's own.
        weight: the weight.
        axis: output-channel dimension.

    Raises:
        ModelError: the scale has neither one value nor one for each output channel.
    """
    scale = torch.as_tensor(quantizer.scale(weight), device=weight.device).float()  # type: ignore[operator]
    if scale.numel() == 1:
        return scale.reshape([1] * weight.dim())
    kept = [size if dim == axis else 1 for dim, size in enumerate(weight.shape)]
    if scale.numel() != weight.shape[axis] or tuple(scale.shape) not in ((weight.shape[axis],), tuple(kept)):
        raise ModelError(
            f"the scale(weight) of {type(quantizer).__name__} is of shape {tuple(scale.shape)} for a weight of "
            f"shape {tuple(weight.shape)}; give one value, or one an output channel: shape "
            f"({weight.shape[axis]},) or {tuple(kept)}."
        )
    return scale.reshape(kept)


class TrackedWeight(WeightQuantizer):
    """Scale from a moving average of the largest magnitudes, or from the largest of a window of them.

    Args:
        bits: width of the codes.
        axis: output-channel dimension, or None for one scale per tensor.
        shape: shape of the weight.
        rate: decay of the moving average; None for a window.
        window: number of steps of the window.
    """

    tracked: Tensor
    weight: Tensor
    history: Tensor

    def __init__(
        self, bits: int, axis: int | None, shape: tuple[int, ...], rate: float | None, window: int
    ) -> None:
        super().__init__(bits, axis)
        self.rate, self.window = rate, window
        kept = [size if dim == axis else 1 for dim, size in enumerate(shape)]
        self.register_buffer("tracked", torch.ones(kept))
        self.register_buffer("weight", torch.zeros(()))
        if rate is None:
            self.register_buffer("history", torch.zeros(window, *kept))

    @override
    def start(self, weight: Tensor) -> None:
        self.tracked.copy_(abs_max_scale(weight, self.axis, self.largest))
        self.weight.zero_()

    @override
    def scale(self, weight: Tensor) -> Tensor:
        return self.tracked

    @override
    def forward(self, weight: Tensor) -> Tensor:
        if self.training and self.observing:
            with torch.no_grad():
                self._track(abs_max_scale(weight, self.axis, self.largest))
        return fake_quantize(weight, self.tracked, -self.largest, self.largest)

    def _track(self, scale: Tensor) -> None:
        if self.rate is None:
            place = torch.remainder(self.weight, self.window).long().reshape(1)
            self.history.index_copy_(0, place, scale.unsqueeze(0))
            self.tracked.copy_(self.history.amax(dim=0))
            self.weight.add_(1)
            return
        self.weight.mul_(self.rate).add_(1)
        self.tracked.add_((scale - self.tracked) / self.weight)


class LearnedStepWeight(WeightQuantizer):
    """LSQ: the step sizes are parameters.

    They start at 2 * mean|w| / sqrt(largest code), as in the paper, or at the abs-max scale where that is
    smaller; with 8 bits the paper's start would clip nothing and waste codes.
    """

    def __init__(self, bits: int, axis: int | None, shape: tuple[int, ...]) -> None:
        super().__init__(bits, axis)
        self.step = nn.Parameter(torch.ones([size if dim == axis else 1 for dim, size in enumerate(shape)]))

    @override
    def start(self, weight: Tensor) -> None:
        dims = [dim for dim in range(weight.dim()) if dim != self.axis]
        mean = weight.detach().abs().mean(dim=dims, keepdim=True)
        covering = abs_max_scale(weight, self.axis, self.largest)
        with torch.no_grad():
            self.step.copy_(torch.minimum(2 * mean / self.largest**0.5, covering).clamp_min(SMALLEST_SCALE))

    @override
    def scale(self, weight: Tensor) -> Tensor:
        return self._magnitude().detach()

    def _magnitude(self) -> Tensor:
        return torch.clamp(self.step.abs(), min=SMALLEST_SCALE)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        step = project(self.step, SMALLEST_SCALE, None) if torch.is_grad_enabled() else self._magnitude()
        gain = (weight.numel() / self.step.numel() * self.largest) ** -0.5
        return learned_step(weight, step, None, -float(self.largest), float(self.largest), gain)


class ClippedQuantizer(WeightQuantizer):
    """PACT before the abs-max scale of each channel: what :class:`ClippedWeight` does first, in one go."""

    def __init__(self, bits: int, axis: int | None) -> None:
        super().__init__(bits, axis)
        self.threshold = nn.Parameter(torch.tensor(20.0))

    @override
    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            self.threshold.copy_(weight.detach().abs().amax())

    @override
    def scale(self, weight: Tensor) -> Tensor:
        return abs_max_scale(weight, self.axis, self.largest, self._end().detach())

    def _end(self) -> Tensor:
        return self.threshold.abs().clamp_min(SMALLEST_SCALE)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.scale(weight)
        return clipped_codes(weight, scale, self._end(), self.largest)


class ClippedWeight(Float32State):
    """PACT on a weight: ``y = x - relu(x - a) + relu(-a - x)``, clipping to [-a, a] with a learned ``a``.

    PaddleSlim starts ``a`` at 20 (later 100) with a learning rate 1000 times the model's, since nothing is
    clipped there and the gradient is zero; here it starts at the weight's largest magnitude.
    """

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(20.0))

    def start(self, weight: Tensor) -> None:
        """Start at the largest magnitude of the weight."""
        with torch.no_grad():
            self.threshold.copy_(weight.detach().abs().amax())

    def forward(self, weight: Tensor) -> Tensor:
        """Clipped weight."""
        return clip(weight, self.threshold)


def weight_quantizer(config: QATConfig, axis: int, shape: tuple[int, ...]) -> nn.Module:
    """The quantizer that a configuration asks for, for a weight of the given shape."""
    if config.weight_quantizer is not None:
        return fresh(config.weight_quantizer)
    kept = axis if config.weight_per_channel else None
    if config.weight_bits == 1:
        return SignWeight(kept)
    if config.weight == "lsq":
        return LearnedStepWeight(config.weight_bits, kept, shape)
    if config.weight == "abs_max":
        kind = ClippedQuantizer if config.weight_preprocess == "pact" else WeightQuantizer
        return kind(config.weight_bits, kept)
    rate = config.moving_rate if config.weight == "moving_average" else None
    return TrackedWeight(config.weight_bits, kept, shape, rate, config.window_size)


def weight_preprocess(config: QATConfig) -> nn.Module | None:
    """The module applied to a weight before its quantizer; None without one, or where the quantizer does it."""
    if config.weight_preprocess is None:
        return None
    if isinstance(config.weight_preprocess, str):
        done = config.weight == "abs_max" and config.weight_quantizer is None
        return None if done else ClippedWeight()
    return fresh(config.weight_preprocess)
