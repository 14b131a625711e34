"""Fake quantization: round to the codes of a scale and back, with straight-through gradients.

Forward, for every method (ONNX QuantizeLinear followed by DequantizeLinear)::

    y = clamp(round_half_even(x / scale), low, high) * scale

``low`` and ``high`` are the smallest and largest code minus the zero point. The division is a division,
as in ONNX, not a product with the reciprocal, so that the exported file makes the same codes.

Backward in x: the gradient passes where the code is inside its range and stops where it was clipped.
Which values those were must be remembered. A byte mask costs memory and, on CPUs, more time than the
quantization itself; torch's own fake_quantize kernel makes one and takes five times as long as four in-place
vector operations (the kernels of ``benchmarks/qat_cost.py``, torch 2.15). So while training in float32 on a
CPU, a clipped value is placed 2^-12 of a step outside the range: far below the rounding noise, and it
tells itself apart in the result, which the next layer keeps anyway. Evaluation never does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: How far outside of the range a clipped value stands while training, in steps.
MARK = 2.0**-12

#: Share of a rounding error that stays in a value while a step is learned.
TRACE = 2.0**-8


@dataclass(frozen=True, slots=True)
class FakeQuantOptions:
    """What a quantizer may do for speed.

    Attributes:
        marked: clipped values may stand :data:`MARK` steps outside (training).
        reuse: the result may take over the memory of the argument, which nobody else reads and whose maker
            doesn't need it for its backward pass.
    """

    marked: bool = False
    reuse: bool = False


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    leave: FakeQuantOptions = FakeQuantOptions(),
) -> Tensor:
    """Quantize and dequantize with a fixed scale.

    Args:
        x: floating tensor.
        scale: positive float32 scalar tensor, or one that broadcasts against ``x``.
        low: smallest code minus zero point.
        high: largest code minus zero point.
        leave: liberties that may be taken.

    Returns:
        Tensor like ``x``.
    """
    return _Clipped.apply(x, scale, low, high, leave)


def straight_through(x: Tensor, scale: Tensor) -> Tensor:
    """Quantize and dequantize values that the scale covers; the gradient is the identity."""
    return _Rounded.apply(x, scale)


def learned_step(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    low: Tensor | float,
    high: Tensor | float,
    gain: float,
    leave: FakeQuantOptions = FakeQuantOptions(),
) -> Tensor:
    """Quantize and dequantize with a trainable step size and, where given, a trainable offset.

    Gradients: "Learned step size quantization" (Esser et al., ICLR 2020) for the scale; "LSQ+" (Bhalgat
    et al., CVPR 2020 workshops) for the offset, the real value of code 0 of an affine quantizer.

    Args:
        x: floating tensor.
        scale: positive scalar parameter, or one that broadcasts against ``x``.
        offset: scalar parameter from which the zero point in ``low`` and ``high`` was made, or None.
        low: smallest code minus zero point.
        high: largest code minus zero point.
        gain: factor on the gradients of scale and offset, 1 / sqrt(values * largest code).
        leave: liberties that may be taken; ``marked`` leaves a trace of what rounding took in every value.
    """
    return _LearnedStep.apply(x, scale, offset, low, high, gain, leave)


def learned_clip(
    x: Tensor,
    scale: Tensor,
    bottom: Tensor | None,
    top: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    leave: FakeQuantOptions = FakeQuantOptions(),
) -> Tensor:
    """Quantize and dequantize with trainable clipping thresholds.

    Gradients ("PACT", Choi et al., arXiv 1805.06085, equation 3): a value passes its gradient between the
    thresholds only, even where it rounds to the last code as well; a threshold gets the sum of the gradients of
    the values from it outwards. ``bottom`` is the mirror image of ``top`` for tensors with negative values.

    Args:
        x: floating tensor.
        scale: positive scalar made from the thresholds.
        bottom: scalar parameter, the real value of ``low``; None where it is fixed.
        top: scalar parameter, the real value of ``high``.
        low: smallest code minus zero point.
        high: largest code minus zero point.
        leave: liberties that may be taken.
    """
    return _LearnedClip.apply(x, scale, bottom, top, low, high, leave)


def clipped_codes(x: Tensor, scale: Tensor, threshold: Tensor, largest: int) -> Tensor:
    """:func:`clip`, then quantize and dequantize: one tensor instead of two, and half the passes.

    Args:
        x: float32 weight.
        scale: covers the clipped weight, and broadcasts against it; where a channel is clipped it must be
            ``threshold / largest``, so that the clamp of the codes is the clip.
        threshold: positive scalar parameter.
        largest: largest code; the smallest is its negative.
    """
    return _ClippedCodes.apply(x, scale, threshold, largest)


def clip(x: Tensor, threshold: Tensor) -> Tensor:
    """``x`` clipped to [-threshold, threshold], with the gradients of PACT.

    The same as ``x - relu(x - threshold) + relu(-threshold - x)``, in a third of the passes over memory.

    Args:
        x: floating tensor.
        threshold: positive scalar parameter.
    """
    return _Clip.apply(x, threshold)


def _scalar_path(x: Tensor, scale: Tensor) -> bool:
    """Whether scale and bounds may become Python numbers: on a CPU that is free, elsewhere a host sync."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and scale.numel() == 1


def _quantized(x: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
    return torch.div(x.float(), scale).round_().clamp_(low, high).mul_(scale).to(x.dtype)


def _in_numbers(ctx: Any, x: Tensor, scale: Tensor, low: Any, high: Any, leave: FakeQuantOptions) -> Tensor:
    """Quantize with Python numbers; where gradients are due, mark clipped values and keep the result."""
    step, first, last = float(scale), float(low), float(high)
    codes = x.div_(step) if leave.reuse else torch.div(x, step)
    if leave.reuse:
        ctx.mark_dirty(x)
    if not any(ctx.needs_input_grad):
        return codes.round_().clamp_(first, last).mul_(step)
    return _rounded_and_marked(ctx, codes, step, first, last)


def _rounded_and_marked(ctx: Any, codes: Tensor, step: float, first: float, last: float) -> Tensor:
    """Values of fractional codes, kept for the backward pass; those outside of the codes are marked."""
    y = codes.round_().clamp_(first - MARK, last + MARK).mul_(step)
    ctx.ends = (first - MARK) * step, (last + MARK) * step
    # half-way between the last code and the mark beyond it
    ctx.edges = (first - MARK / 2) * step, (last + MARK / 2) * step
    ctx.save_for_backward(y)
    return y


def _clipped_in_numbers(
    ctx: Any,
    x: Tensor,
    scale: Tensor,
    ends: tuple[Tensor, Tensor],
    low: Any,
    high: Any,
    leave: FakeQuantOptions,
) -> Tensor:
    """As :func:`_in_numbers`, with marks from the thresholds on, not from half a step beyond the last codes.

    The one in-place function that replaces what lies beyond a bound works downwards, so the upper end is
    searched among the negated codes.
    """
    step = float(scale)
    codes = x.div_(-step) if leave.reuse else torch.div(x, -step)
    if leave.reuse:
        ctx.mark_dirty(x)
    bottom, top = (end / scale for end in ends)
    below = torch.nextafter(bottom, bottom - 1)  # a value of the bottom itself, often a zero, isn't clipped
    torch.threshold_(codes, -float(top), -float(high) - 1)
    torch.threshold_(codes.neg_(), float(below), float(low) - 1)
    return _rounded_and_marked(ctx, codes, step, float(low), float(high))


def _by_numbers(ctx: Any, x: Tensor, scale: Tensor, leave: FakeQuantOptions) -> bool:
    return _scalar_path(x, scale) and (leave.marked or not any(ctx.needs_input_grad))


def _inside(x: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
    """bool tensor: which values round to a code of the range."""
    codes = torch.div(x.float(), scale).round_()
    return (codes >= low).logical_and_(codes <= high)


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Any, high: Any, leave: FakeQuantOptions) -> Tensor:
        ctx.edges = None
        if _by_numbers(ctx, x, scale, leave):
            return _in_numbers(ctx, x, scale, low, high, leave)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_inside(x, scale, low, high))
        return _quantized(x, scale, low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        if ctx.edges is None:
            return grad * kept, None, None, None, None
        return torch.ops.aten.hardtanh_backward(grad, kept, *ctx.edges), None, None, None, None


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return torch.div(x.float(), scale).round_().mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        low: Any,
        high: Any,
        gain: float,
        leave: FakeQuantOptions,
    ) -> Tensor:
        scale = scale.detach()
        ctx.low, ctx.high, ctx.offset, ctx.gain = low, high, offset is not None, gain
        by_numbers = _scalar_path(x, scale)
        ctx.traced = (
            by_numbers and leave.marked and any(ctx.needs_input_grad) and float(high) - float(low) <= 255
        )
        if ctx.traced:
            y = _traced(ctx, x, float(scale), float(low), float(high), leave)
            ctx.save_for_backward(y, scale)
            return y
        if by_numbers:
            step = float(scale)
            y = torch.div(x, step).round_().clamp_(float(low), float(high)).mul_(step)
        else:
            y = _quantized(x, scale, low, high)
        ctx.save_for_backward(y, scale, x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, scale, *rest = ctx.saved_tensors
        if ctx.traced:
            passed, step = _from_trace(ctx, grad, y, float(scale))
        else:
            passed, step = _step_gradient(ctx, grad, rest[0], y, scale)
        if not ctx.offset:
            return passed, step * ctx.gain, None, None, None, None, None
        stopped = _total(grad, scale) - _total(passed, scale)
        # low = first code - zero point, so codes counted from the first one are codes - low
        step = step - ctx.low * stopped
        return passed, step * ctx.gain, stopped * ctx.gain, None, None, None, None


def _traced(ctx: Any, x: Tensor, step: float, first: float, last: float, leave: FakeQuantOptions) -> Tensor:
    """Rounded values, each with a small share of what rounding took, so that nothing else need be kept.

    The gradient of a step wants ``round(x / step) - x / step``, for which ``x`` would have to be kept beside
    the result. Codes of eight bits leave 16 of a float32's 24 bits free: a value inside of the range stands
    ``TRACE * (x / step - code)`` steps, at most a 512th, beside its code, and one that is clipped on it.
    """
    codes = x.div_(step) if leave.reuse else torch.div(x, step)
    if leave.reuse:
        ctx.mark_dirty(x)
    return codes.lerp_(torch.round(codes), 1 - TRACE).clamp_(first, last).mul_(step)


def _from_trace(ctx: Any, grad: Tensor, y: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Gradients of values and step from what :func:`_traced` has made."""
    first, last = float(ctx.low), float(ctx.high)
    passed = torch.ops.aten.hardtanh_backward(grad, y, first * step, last * step)
    clipped = (_dot(grad, y) - _dot(passed, y)) / step
    # codes are shifted, so that none is negative, and by a half, so that each fraction lies around a half
    shifted = torch.add(torch.tensor(0.5 - first), y, alpha=1 / step)
    return passed, clipped - _dot(passed, shifted.frac_().sub_(0.5)) / TRACE


def _step_gradient(ctx: Any, grad: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of values and step from the values before and after rounding."""
    if _scalar_path(x, scale):
        step = float(scale)
        passed = torch.ops.aten.hardtanh_backward(grad, x, float(ctx.low) * step, float(ctx.high) * step)
        return passed, (_inner(grad, y, scale) - _inner(passed, x, scale)) / scale
    ratio = torch.div(x.float(), scale)
    passed = _passed(grad, ratio, ctx.low, ctx.high)
    if not grad.dtype == y.dtype == passed.dtype == torch.float32:
        return passed, _total(grad * y, scale) / scale - _total(ratio * passed, scale)
    # the ratio's memory serves once more: fresh memory costs more than a pass over old
    products = torch.mul(grad, y, out=ratio).addcmul_(passed, x, value=-1)
    return passed, _total(products, scale) / scale


def _passed(grad: Tensor, ratio: Tensor, low: Any, high: Any) -> Tensor:
    """Gradient where the ratio of value and step lies within the codes, zero elsewhere."""
    if isinstance(low, Tensor) or grad.dtype != torch.float32:
        return grad * (ratio >= low).logical_and_(ratio <= high)
    return torch.ops.aten.hardtanh_backward(grad, ratio, low, high)


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        bottom: Tensor | None,
        top: Tensor,
        low: Any,
        high: Any,
        leave: FakeQuantOptions,
    ) -> Tensor:
        scale = scale.detach()
        ctx.bottom, ctx.edges = bottom is not None, None
        ends = (low * scale if bottom is None else bottom.detach()), top.detach()
        if _by_numbers(ctx, x, scale, leave):
            if any(ctx.needs_input_grad):
                return _clipped_in_numbers(ctx, x, scale, ends, low, high, leave)
            return _in_numbers(ctx, x, scale, low, high, leave)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x < ends[0], x >= ends[1])
        ctx.mirrored = 0.0 if ctx.bottom else low / high
        return _quantized(x, scale, low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if ctx.edges is None:
            below, above = ctx.saved_tensors
            passed = grad.masked_fill(below | above, 0)
            top, bottom = (grad * above).float().sum(), (grad * below).float().sum()
            if not ctx.bottom:  # of symmetric codes the lower end moves with the upper one
                top, bottom = top + ctx.mirrored * bottom, None
            return passed, None, bottom, top, None, None, None
        (y,) = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(grad, y, *ctx.edges)
        first, last = ctx.ends
        stopped = torch.sub(grad, passed)  # zero but where y is one of the ends
        product = _dot(stopped, y)
        if not ctx.bottom:  # an end at zero is MARK steps from it: a millionth, where it should be nothing
            return passed, None, None, product / last, None, None, None
        total = stopped.sum()
        top = (product - first * total) / (last - first)
        return passed, None, total - top, top, None, None, None


class _ClippedCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, threshold: Tensor, largest: int) -> Tensor:
        y = torch.div(x, scale).round_().clamp_(-largest, largest).mul_(scale).to(x.dtype)
        ctx.save_for_backward(x, y, threshold)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y, threshold = ctx.saved_tensors
        if x.device.type == "cpu":
            end = float(threshold)
            passed = torch.ops.aten.hardtanh_backward(grad, x, -end, end)
        else:
            passed = grad * (x.abs() < threshold)
        # y is the threshold, or its negative, wherever the gradient was stopped
        return passed, None, (_dot(grad, y) - _dot(passed, y)) / threshold, None


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(x, threshold.detach())
        return torch.div(x, threshold).clamp_(-1.0, 1.0).mul_(threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, threshold = ctx.saved_tensors
        ratio = torch.div(x, threshold)
        passed = torch.ops.aten.hardtanh_backward(grad, ratio, -1.0, 1.0)
        sign = ratio.clamp_(-1.0, 1.0)  # exactly 1 or -1 wherever the gradient was stopped
        return passed, _inner(grad, sign, threshold) - _inner(passed, sign, threshold)


def _inner(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """Sum of products over every dimension that ``like`` doesn't keep, shaped as ``like``."""
    return _dot(left, right).reshape(like.shape) if like.numel() == 1 else _total(left * right, like)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Sum of all products, a float32 scalar; of float32 tensors of one layout without a tensor of products."""
    if left.dtype == right.dtype == torch.float32:
        if left.dim() == 4 and not left.is_contiguous():  # channels last is contiguous in this order
            left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)
        if left.is_contiguous() and right.is_contiguous():
            return torch.dot(left.view(-1), right.view(-1))
    return (left * right).float().sum()


def _total(values: Tensor, like: Tensor) -> Tensor:
    return values.float().sum_to_size(like.shape)
