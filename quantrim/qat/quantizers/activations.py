"""Quantizers of activations: modules that hold a range and apply it.

Every quantizer has ``qparams()`` → (scale, zero point), float32 scalar tensors, and ``low, high``, the
first and last code. A tensor that is never negative has its zero point fixed at the first code of real
zero, and its quantizer computes the ReLU before it as well: the clamp at code 0 is one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from quantrim.qat.config import QATConfig, fresh
from quantrim.qat.quantizers.fake_quantize import FakeQuantOptions, fake_quantize, learned_clip, learned_step
from quantrim.qat.quantizers.state import Float32State, project
from quantrim.ranges import Range
from quantrim.ranges.scales import SMALLEST_SCALE
from quantrim.ranges.torch_mirror import affine_scale, symmetric_scale

_NOT_FINITE = (
    "a training batch makes activations that are NaN or infinite; ranges take nothing from it. Check the data, "
    "the loss and the learning rate."
)


@dataclass(frozen=True, slots=True)
class Codes:
    """The integers that a tensor may take.

    Attributes:
        low: smallest code.
        high: largest code.
        affine: the zero point is free; else it is code 0.
        non_negative: no value is below zero, so that real zero is code 0.
        cap: the largest value that can occur (6 behind ReLU6), None when unknown.
    """

    low: int
    high: int
    affine: bool
    non_negative: bool
    cap: float | None = None


def codes_for(activation: Literal["u8", "s8"], bits: int, non_negative: bool, cap: float | None) -> Codes:
    """Codes of an activation: unsigned affine or signed symmetric ones of the given width.

    One signed bit has the codes -1, 0 and 1: with two of them a symmetric grid would lose one sign.
    """
    if activation == "u8":
        return Codes(0, 2**bits - 1, affine=not non_negative, non_negative=non_negative, cap=cap)
    half = 2 ** (bits - 1)
    return Codes(-half, max(1, half - 1), affine=False, non_negative=non_negative, cap=cap)


class ActivationQuantizer(Float32State):
    """Common part: from a real range to scale and zero point, and the rounding.

    Subclasses say where the range comes from. Several tensors may share a quantizer (the inputs of a
    concat); each is a member with statistics of its own, and the range covers them all.

    Args:
        codes: the integers to round to.
        members: number of tensors that feed the quantizer.
    """

    observing: bool
    #: Whether the clamp of this quantizer may stand for the ReLU before it.
    takes_relu = True

    def __init__(self, codes: Codes, members: int) -> None:
        super().__init__()
        self.codes, self.members = codes, members
        self.observing = True

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Real range (low, high) as scalar tensors."""
        raise NotImplementedError

    def observe(self, x: Tensor, member: int) -> None:
        """Take a batch's statistics in; learned ranges have nothing to take."""

    def set_ranges(self, kept: Sequence[Range], trust: float) -> None:
        """Start from calibrated ranges.

        Args:
            kept: one range a member.
            trust: how many batches' worth of evidence they are; 0 lets the first training batch replace
                them.
        """
        raise NotImplementedError

    def qparams(self) -> tuple[Tensor, Tensor]:
        """(scale, zero point) now, float32 scalar tensors; the zero point holds a whole number."""
        low, high = self.bounds()
        return affine_qparams(low, high, self.codes)

    def forward(
        self, x: Tensor, member: int | None = None, reuse: bool = False, exposed: bool = False
    ) -> Tensor:
        """Fake-quantized ``x``.

        Args:
            x: floating tensor.
            member: which member ``x`` is; while training, its statistics are taken first. None: not taken.
            reuse: the memory of ``x`` may be used for the result.
            exposed: the result must hold nothing but values of codes, while training, too.
        """
        if self.training and self.observing and member is not None:
            with torch.no_grad():
                self.observe(x.detach(), member)
        return self.quantize(x, FakeQuantOptions(marked=self.training and not exposed, reuse=reuse))

    def quantize(self, x: Tensor, leave: FakeQuantOptions) -> Tensor:
        """Fake-quantized ``x``."""
        with torch.no_grad():
            scale, zero_point = self.qparams()
        first, last = code_bounds(self.codes, zero_point)
        return fake_quantize(x, scale, first, last, leave)


def affine_qparams(low: Tensor, high: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover [low, high]; as :func:`quantrim.ranges.activation_scale`."""
    if codes.affine:
        return affine_scale(low, high, codes.low, codes.high)
    reach = high if codes.non_negative else torch.maximum(-low, high)
    cap = None if codes.cap is None else codes.cap / codes.high
    scale = symmetric_scale(reach, codes.high, cap)
    return scale, torch.zeros_like(scale)


def code_bounds(codes: Codes, zero_point: Tensor) -> tuple[Any, Any]:
    """Smallest and largest code minus the zero point: numbers where that is fixed, else tensors."""
    if codes.affine:
        return codes.low - zero_point, codes.high - zero_point
    return (0.0 if codes.non_negative else float(codes.low)), float(codes.high)


def batch_range(x: Tensor, codes: Codes) -> tuple[Tensor, Tensor] | None:
    """Smallest and largest value of a batch, widened to hold zero and cut at what can occur.

    Returns:
        float32 scalars; None of a batch that has no range, since it is empty or holds NaN or infinite values.
        Off the CPU, where looking would make the host wait, such a range is returned as it is.
    """
    if not x.numel():
        return None
    low, high = _ends(x, codes)
    if x.device.type == "cpu" and not math.isfinite(float(high) - float(low)):
        warnings.warn(_NOT_FINITE, stacklevel=2)
        return None
    return low, high


def _ends(x: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
    if codes.non_negative:
        high = torch.clamp(x.amax().float(), min=0.0, max=codes.cap)
        return torch.zeros_like(high), high
    low, high = torch.aminmax(x)
    return torch.clamp(low.float(), max=0.0), torch.clamp(high.float(), min=0.0)


class MovingAverage(ActivationQuantizer):
    """Exponential moving average of the batches' ranges, weighted so that its start has no bias.

    ``weight ← rate * weight + 1; low ← low + (batch low - low) / weight``: the average that PaddleSlim keeps
    as accum / state. There it starts at accum = state = 1, which drags the first scales towards 1; here
    the first batch (or calibration) is the start. ``compat`` gives the old behaviour.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    def __init__(self, codes: Codes, members: int, rate: float, compat: bool = False) -> None:
        super().__init__(codes, members)
        self.rate, self.compat = rate, compat
        self.register_buffer("low", torch.full((members,), 0.0 if codes.non_negative else -1.0))
        self.register_buffer("high", torch.ones(members))
        self.register_buffer("weight", torch.full((members,), 1.0 if compat else 0.0))

    @override
    def bounds(self) -> tuple[Tensor, Tensor]:
        if self.members == 1:
            return self.low[0], self.high[0]
        return self.low.amin(), self.high.amax()

    @override
    def set_ranges(self, kept: Sequence[Range], trust: float) -> None:
        if self.compat:
            return
        self.low.copy_(torch.tensor([range_.low for range_ in kept]))
        self.high.copy_(torch.tensor([range_.high for range_ in kept]))
        self.weight.fill_(min(trust, 1 / (1 - self.rate)))

    @override
    def observe(self, x: Tensor, member: int) -> None:
        found = batch_range(x, self.codes)
        if found is None:
            return
        low, high = self._finite(found, member)
        share = self.weight[member].mul_(self.rate).add_(1).reciprocal()
        self.high[member].lerp_(high, share)
        if not self.codes.non_negative:
            self.low[member].lerp_(low, share)

    def _finite(self, found: tuple[Tensor, Tensor], member: int) -> tuple[Tensor, Tensor]:
        """The range, or the average so far where an end is NaN or infinite; without a host sync."""
        low, high = found
        if low.device.type == "cpu":  # looked at already
            return found
        good = torch.isfinite(high - low)
        return torch.where(good, low, self.low[member]), torch.where(good, high, self.high[member])


class BatchRange(MovingAverage):
    """Each training batch's own range ("abs_max"); the average range in evaluation and in the file.

    Tensors that share a quantizer can't each have their own range, so they train with the average too.
    """

    @override
    def quantize(self, x: Tensor, leave: FakeQuantOptions) -> Tensor:
        if not self.training or self.members > 1:
            return super().quantize(x, leave)
        with torch.no_grad():
            found = batch_range(x.detach(), self.codes)
            if found is None:
                return super().quantize(x, leave)
            scale, zero_point = affine_qparams(*self._finite(found, 0), self.codes)
        first, last = code_bounds(self.codes, zero_point)
        return fake_quantize(x, scale, first, last, leave)


class WindowRange(ActivationQuantizer):
    """Widest range of the last ``window`` training batches ("range_abs_max")."""

    lows: Tensor
    highs: Tensor
    step: Tensor

    def __init__(self, codes: Codes, members: int, window: int) -> None:
        super().__init__(codes, members)
        self.register_buffer("lows", torch.zeros(members, window))
        self.register_buffer("highs", torch.zeros(members, window))
        self.register_buffer("step", torch.zeros(members, dtype=torch.int64))

    @override
    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.lows.amin(), self.highs.amax()

    @override
    def set_ranges(self, kept: Sequence[Range], trust: float) -> None:
        self.lows.zero_()
        self.highs.zero_()
        self.lows[:, 0] = torch.tensor([range_.low for range_ in kept])
        self.highs[:, 0] = torch.tensor([range_.high for range_ in kept])
        self.step.fill_(1 if trust else 0)

    @override
    def observe(self, x: Tensor, member: int) -> None:
        found = batch_range(x, self.codes)
        if found is None:
            return
        low, high = (torch.nan_to_num(end, 0.0, 0.0, 0.0) for end in found)
        place = torch.remainder(self.step[member], self.lows.shape[1]).reshape(1)
        self.lows[member].index_copy_(0, place, low.reshape(1))
        self.highs[member].index_copy_(0, place, high.reshape(1))
        self.step[member].add_(1)


class LearnedStep(ActivationQuantizer):
    """LSQ: the scale is a parameter; LSQ+: for affine codes the real value of the first code is one too."""

    def __init__(self, codes: Codes, members: int) -> None:
        super().__init__(codes, members)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(0.0)) if codes.affine else None

    @override
    def set_ranges(self, kept: Sequence[Range], trust: float) -> None:
        low, high = (torch.tensor(end) for end in _widest(kept))
        with torch.no_grad():
            self.scale.copy_(affine_qparams(low, high, self.codes)[0])
            if self.offset is not None:
                self.offset.copy_(low)

    @override
    def bounds(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.qparams()
        first, last = code_bounds(self.codes, zero_point)
        return scale * first, scale * last

    @override
    def qparams(self) -> tuple[Tensor, Tensor]:
        scale = self._step().detach()
        if self.offset is None:
            return scale, torch.zeros_like(scale)
        place = torch.round(self.codes.low - self.offset.detach() / scale)
        return scale, torch.clamp(place, self.codes.low, self.codes.high)

    @property
    def _largest(self) -> float | None:
        return None if self.codes.cap is None else self.codes.cap / self.codes.high

    def _step(self) -> Tensor:
        return torch.clamp(self.scale.abs(), min=SMALLEST_SCALE, max=self._largest)

    @override
    def quantize(self, x: Tensor, leave: FakeQuantOptions) -> Tensor:
        step = project(self.scale, SMALLEST_SCALE, self._largest) if torch.is_grad_enabled() else self._step()
        first, last = code_bounds(self.codes, self.qparams()[1])
        gain = (max(x.shape[1:].numel(), 1) * self.codes.high) ** -0.5
        return learned_step(x, step, self.offset, first, last, gain, leave)


class LearnedClip(ActivationQuantizer):
    """PACT: the ends of the range are parameters, trained by the gradients of what they clip."""

    def __init__(self, codes: Codes, members: int) -> None:
        super().__init__(codes, members)
        self.top = nn.Parameter(torch.tensor(1.0))
        self.bottom = nn.Parameter(torch.tensor(-1.0)) if codes.affine else None

    @override
    def set_ranges(self, kept: Sequence[Range], trust: float) -> None:
        low, high = _widest(kept)
        symmetric = not self.codes.affine and not self.codes.non_negative
        with torch.no_grad():
            self.top.fill_(max(high, -low) if symmetric else high)
            if self.bottom is not None:
                self.bottom.fill_(low)

    @override
    def bounds(self) -> tuple[Tensor, Tensor]:
        bottom, top = self._ends()
        return (-top if bottom is None else bottom).detach(), top.detach()

    def _ends(self) -> tuple[Tensor | None, Tensor]:
        # as for steps, magnitudes count: an end beyond zero would make the tensor zero for good
        return (None if self.bottom is None else -self.bottom.abs()), self.top.abs()

    @override
    def quantize(self, x: Tensor, leave: FakeQuantOptions) -> Tensor:
        with torch.no_grad():
            scale, zero_point = self.qparams()
        bottom, top = self._ends()
        first, last = code_bounds(self.codes, zero_point)
        return learned_clip(x, scale, bottom, top, first, last, leave)


def _widest(kept: Sequence[Range]) -> tuple[float, float]:
    return min(range_.low for range_ in kept), max(range_.high for range_ in kept)


def activation_quantizer(config: QATConfig, codes: Codes, members: int) -> nn.Module:
    """The quantizer that a configuration asks for."""
    if config.activation_quantizer is not None:
        return fresh(config.activation_quantizer)
    makers: dict[str, Callable[[], nn.Module]] = {
        "moving_average": lambda: MovingAverage(codes, members, config.moving_rate, config.compat_start),
        "abs_max": lambda: BatchRange(codes, members, config.moving_rate),
        "range_abs_max": lambda: WindowRange(codes, members, config.window_size),
        "lsq": lambda: LearnedStep(codes, members),
        "pact": lambda: LearnedClip(codes, members),
    }
    return makers[config.activation]()
