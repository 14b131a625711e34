"""The int32 bias of the file, seen in evaluation.

Engines add a bias to integer sums, so a file stores it in units of activation scale times weight scale. For
a depthwise layer a unit can be a thirtieth of a step of the result, enough to move one code in a hundred.
In evaluation the module's biases are rounded alike; a BatchNorm's shift takes the correction for the layer
before it. Training leaves them alone: to it this is noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quantrim.modules import Arguments
from quantrim.qat.plan import BiasUse, CallSite
from quantrim.qat.tracing.trace import ArgumentPath
from quantrim.ranges.scales import UNIT_SCALE

_BATCH_NORM = inspect.signature(F.batch_norm)


def finer_factor(largest: int) -> int:
    """Factor that widens narrow weight codes to the range of int8, and refines their scale alike.

    The values stay the same, and the int32 bias, whose unit holds the weight's scale, gets finer.
    """
    return 127 // largest


class BiasRounding:
    """What is known of the layers of one forward pass.

    Attributes:
        scales: scale of each layer's weight.
    """

    def __init__(self) -> None:
        self.scales: dict[str, Tensor] = {}
        self._own: dict[str, Tensor | None] = {}
        self._factors: dict[str, Tensor] = {}

    def arguments(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: CallSite, source: Tensor
    ) -> Arguments:
        """Arguments of a call with the bias rounded as the file has it.

        Args:
            function: the function called.
            args: its positional arguments.
            kwargs: its keyword arguments.
            site: the call; it has a bias.
            source: scale of the activation that the layer multiplies.
        """
        use = site.bias
        assert use is not None
        if function is F.batch_norm:
            return self._normed(use, args, kwargs, source)
        if site.name == use.factor:
            self._factors[use.layer] = args[use.places[0]]
            return args, kwargs
        if use.factor is not None and site.name == use.norm:
            return self._shifted(use, args, kwargs, source)
        own = _argument(args, kwargs, use.slot) if use.slot else None
        if use.norm is not None:
            self._own[use.layer] = own
            return args, kwargs
        if own is None or use.layer not in self.scales:
            return args, kwargs
        step = source * self.scales[use.layer].reshape(-1)
        return replaced(args, kwargs, use.slot, lambda bias: _rounded(bias, step))

    def _shifted(
        self, use: BiasUse, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor
    ) -> Arguments:
        """The sum of a BatchNorm that is written out: what its layer's bias has become comes off again."""
        place, factor = use.places[1], self._factors.pop(use.layer).reshape(-1)
        own = self._own.pop(use.layer, None)
        offset = torch.zeros_like(factor) if own is None else own * factor
        shift = args[place]
        scale = self.scales[use.layer].reshape(-1) if use.layer in self.scales else UNIT_SCALE
        whole = _rounded(offset + shift.reshape(-1), source * scale * factor.abs()) - offset
        return (*args[:place], whole.reshape(shift.shape), *args[place + 1 :]), kwargs

    def _normed(self, use: BiasUse, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor) -> Arguments:
        call = _BATCH_NORM.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        mean, variance = given["running_mean"], given["running_var"]
        if given["training"] or mean is None or variance is None:
            return args, kwargs
        factor = torch.rsqrt(variance + given["eps"])
        factor = factor if given["weight"] is None else factor * given["weight"]
        own = self._own.pop(use.layer, None)
        offset = ((0.0 if own is None else own) - mean) * factor
        whole = offset if given["bias"] is None else offset + given["bias"]
        scale = self.scales[use.layer].reshape(-1) if use.layer in self.scales else UNIT_SCALE
        given["bias"] = _rounded(whole, source * scale * factor.abs()) - offset
        return call.args, call.kwargs


def _rounded(bias: Tensor, step: Tensor) -> Tensor:
    """Nearest multiple of the step; a channel of step 0 keeps its bias."""
    return torch.where(step > 0, torch.round(bias / step) * step, bias).to(bias.dtype)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], slot: ArgumentPath) -> Any:
    return args[slot[0]] if isinstance(slot[0], int) else kwargs[slot[0]]


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], slot: ArgumentPath, change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the one at ``slot`` changed; nothing is changed in place."""
    key, inner = slot[0], slot[1:]
    value = args[key] if isinstance(key, int) else kwargs[key]
    if inner:
        items = list(value)
        items[int(inner[0])] = change(items[int(inner[0])])
        value = tuple(items) if isinstance(value, tuple) else items
    else:
        value = change(value)
    if isinstance(key, int):
        return (*args[:key], value, *args[key + 1 :]), kwargs
    return args, {**kwargs, key: value}
