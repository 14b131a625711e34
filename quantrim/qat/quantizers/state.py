"""What the state of every quantizer needs: float32 whatever the module's format, and steps within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override


class Float32State(nn.Module):
    """Module whose float32 parameters and buffers keep their format when the model around changes its own.

    ``model.bfloat16()`` would leave ranges three digits, and a moving average of them would stand still.
    """

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            changed = tensor.dtype == torch.float32 and made.dtype != torch.float32
            return tensor.to(made.device) if changed else made

        return super()._apply(kept, recurse)  # type: ignore[no-untyped-call]


def project(step: nn.Parameter, low: float, high: float | None) -> nn.Parameter:
    """The step itself, brought back to where it may be, so that its gradient lives.

    An optimizer may carry it across zero or beyond a bound, where a clamp in the formula would stop its
    gradient for good. The change is one of ``data``, for graphs of earlier calls may still need the parameter.
    """
    step.data.abs_().clamp_(low, high)
    return step
