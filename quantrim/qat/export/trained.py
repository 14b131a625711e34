"""What training has left, in the terms of a file: codes of weights, scale and zero point of activations.

Quantizers of the user's own say these by methods (``scale(weight)``, ``qparams()``) beside the forward that was
trained with. Both are asked here; a quantizer whose methods say something else than its forward is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from quantrim.errors import ModelError
from quantrim.qat.interceptor import (
    LiveModule,
    QuantizerSet,
    Simulate,
    Visitor,
    key_of,
    prepared_activation,
    prepared_weight,
)
from quantrim.qat.plan import CallSite, WeightUse
from quantrim.qat.quantizers.activations import ActivationQuantizer
from quantrim.qat.quantizers.bias import finer_factor
from quantrim.qat.quantizers.weights import scale_of
from quantrim.ranges import ActivationScale

#: Largest code of a weight in a file.
_LARGEST = 127
#: Largest distance of a custom quantizer's value from a multiple of its scale, in steps.
_OFF_GRID = 0.01
#: Part of the range beyond its ends in which a custom activation quantizer is tried.
_BEYOND = 0.5


@dataclass(frozen=True, slots=True)
class TrainedWeight:
    """A weight as trained.

    Attributes:
        raw: float32 weight of the module, before its preprocess module.
        codes: int8, same shape.
        scales: float32[channels], or [1] per tensor.
        axis: output-channel dimension.
    """

    raw: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    axis: int


class TakeWeights(Visitor):
    """Visitor that takes the codes of every weight in an ordinary run."""

    def __init__(self, quantizers: QuantizerSet) -> None:
        self.quantizers = quantizers
        self.weights: dict[str, TrainedWeight] = {}

    @override
    def weight(self, weight: Tensor, use: WeightUse, site: CallSite) -> Tensor:
        quantizer = self.quantizers.weights[key_of(use.key)]
        prepared = prepared_weight(self.quantizers, weight, use)
        if not hasattr(quantizer, "scale"):
            raise ModelError(
                f"the weight quantizer {type(quantizer).__name__} has no method scale(weight); "
                "it can train but not be exported."
            )
        scale = scale_of(quantizer, prepared, use.axis)
        codes = _weight_codes(quantizer, prepared, scale, site.name)
        finer = finer_factor(getattr(quantizer, "largest", _LARGEST))
        self.weights[site.name] = TrainedWeight(
            raw=weight.detach().float().cpu().numpy().copy(),
            codes=(codes * finer).to(torch.int8).cpu().numpy(),
            scales=scale.detach().float().cpu().numpy().reshape(-1) / finer,
            axis=use.axis,
        )
        return weight


def _weight_codes(quantizer: nn.Module, prepared: Tensor, scale: Tensor, layer: str) -> Tensor:
    """Integers of a weight, as its quantizer's forward makes them."""
    steps = torch.div(quantizer(prepared).float(), scale)
    codes = steps.round()
    off, reach = float((steps - codes).abs().max()), float(codes.abs().max())
    if not off <= _OFF_GRID or reach > _LARGEST:
        what = f"{off:.2g} steps off the whole multiples" if reach <= _LARGEST else f"up to code {reach:.0f}"
        raise ModelError(
            f"layer {layer!r}: the weight quantizer {type(quantizer).__name__} gives values {what} of its "
            f"scale(weight). A file holds whole multiples from -{_LARGEST} to {_LARGEST}: let forward() and "
            "scale() agree on them."
        )
    return codes


def trained_scales(
    live: LiveModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, ActivationScale]:
    """Scale, zero point and sign of each activation quantizer's codes, by group.

    Args:
        live: the trained module.
        args: positional inputs of a run in which quantizers of the user's own are watched.
        kwargs: keyword inputs of that run.

    Raises:
        ModelError: a quantizer has no ``qparams()``, or its forward computes something else than they say.
    """
    watch = _Watch(live.quantizers)
    if watch.open:
        with live.evaluating(watch):
            live.module(*args, **kwargs)
    scales = {}
    for group, codes in live.quantizers.layout.codes.items():
        quantizer = live.quantizers.quantizer(group)
        if isinstance(quantizer, ActivationQuantizer):
            scale, zero_point = quantizer.qparams()
            scales[group] = ActivationScale(float(scale), int(zero_point), codes.low < 0)
        else:
            scales[group] = watch.open[group][0]
    return scales


class _Watch(Simulate):
    """Visitor that finds out in which codes the zero points of custom activation quantizers count.

    Attributes:
        open: by group, what has agreed with the forward on every tensor so far, likeliest first.
    """

    def __init__(self, quantizers: QuantizerSet) -> None:
        super().__init__(quantizers, observe=False)
        self.open: dict[str, list[ActivationScale]] = {}
        for group, codes in quantizers.layout.codes.items():
            quantizer = quantizers.quantizer(group)
            if not isinstance(quantizer, ActivationQuantizer):
                self.open[group] = _readings(quantizer, signed=codes.low < 0)

    @override
    def _activation(
        self, x: Tensor, group: str, member: int | None, reuse: bool = False, exposed: bool = False
    ) -> Tensor:
        if group not in self.open:
            return super()._activation(x, group, member, reuse, exposed)
        quantizer = self.quantizers.quantizer(group)
        prepared = prepared_activation(self.quantizers, x, group)
        result: Tensor = quantizer(prepared)
        self._compare(group, quantizer, prepared, result)
        reading = self.open[group][0]
        first, last = _ends(reading)
        ends = first - _BEYOND * (last - first), last + _BEYOND * (last - first)
        probe = torch.linspace(*ends, prepared.numel(), dtype=prepared.dtype, device=prepared.device)
        probe = probe.reshape(prepared.shape)
        self._compare(group, quantizer, probe, quantizer(probe))
        return result

    def _compare(self, group: str, quantizer: nn.Module, x: Tensor, result: Tensor) -> None:
        agreed = [reading for reading in self.open[group] if _agrees(reading, x, result)]
        if not agreed:
            said = self.open[group][0]
            raise ModelError(
                f"the activation quantizer {type(quantizer).__name__} of {group!r} computes something else "
                f"than its qparams() say (scale {said.scale:.3g}, zero point {said.zero_point}, codes 0..255 "
                "or -128..127). A file can only hold the latter: make forward() and qparams() agree."
            )
        self.open[group] = agreed


def _readings(quantizer: nn.Module, signed: bool) -> list[ActivationScale]:
    """What ``qparams()`` may mean: a zero point among the target's codes, or among the other ones."""
    if not hasattr(quantizer, "qparams"):
        raise ModelError(
            f"the activation quantizer {type(quantizer).__name__} has no method qparams(); "
            "it can train but not be exported."
        )
    given, place = quantizer.qparams()  # type: ignore[operator]
    scale, zero_point, shift = float(given), round(float(place)), -128 if signed else 128
    if not 0 < scale < float("inf"):
        raise ModelError(
            f"the activation quantizer {type(quantizer).__name__} gives the scale {scale}; it must be above 0."
        )
    low = -128 if signed else 0
    meant = [point for point in (zero_point, zero_point + shift) if low <= point <= low + 255]
    return [ActivationScale(scale, point, signed) for point in meant or [zero_point]]


def _ends(scale: ActivationScale) -> tuple[float, float]:
    """Smallest and largest value that a scale's codes hold."""
    low = -128 if scale.signed else 0
    return (low - scale.zero_point) * scale.scale, (low + 255 - scale.zero_point) * scale.scale


def _agrees(scale: ActivationScale, x: Tensor, result: Tensor) -> bool:
    """Whether values are those of QuantizeLinear and DequantizeLinear; at ties either code may be."""
    low = -128 if scale.signed else 0
    steps = x.float() / scale.scale
    codes = torch.clamp(steps.round(), low - scale.zero_point, low + 255 - scale.zero_point)
    off = (result.float() / scale.scale - codes).abs()
    tie = (steps - steps.floor() - 0.5).abs() <= _OFF_GRID
    return bool(((off <= _OFF_GRID) | (tie & ((off - 1).abs() <= _OFF_GRID))).all())
