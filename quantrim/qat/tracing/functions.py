"""Which torch function stands for which canonical op of :mod:`quantrim.graph.view`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from quantrim.graph.ops import OF_TORCH

Function = Callable[..., Any]

#: Functions made by torch's boolean_dispatch are all called "fn", so they are known by identity.
_DISPATCHED = {F.max_pool1d: "max_pool", F.max_pool2d: "max_pool", F.max_pool3d: "max_pool"}


@lru_cache(maxsize=4096)
def canonical(function: Function) -> str | None:
    """Canonical op of a torch function.

    Returns:
        A canonical op, the function's own name where quantrim has none, or None for attribute access
        (``x.shape``), which isn't counted.
    """
    if function in _DISPATCHED:
        return _DISPATCHED[function]
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        return None
    bare = name.strip("_")
    return OF_TORCH.get(bare, bare)


def refined(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> str:
    """Canonical op of one call, where the function alone doesn't tell.

    Means and adaptive pools over the whole image are global pools; an adaptive pool with whole windows is
    an ordinary one; other reductions keep their name, which no target runs in INT8.
    """
    source = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
    if not isinstance(output, torch.Tensor) or source is None:
        return op
    if op == "mean":
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        whole = isinstance(dims, (tuple, list)) and sorted(d % source.ndim for d in dims) == [2, 3]
        return "global_avg_pool" if whole and source.ndim == 4 else "mean"
    if op == "adaptive_avg_pool2d" and source.ndim == 4:
        if tuple(output.shape[2:]) == (1, 1):
            return "global_avg_pool"
        even = all(size % out == 0 for size, out in zip(source.shape[2:], output.shape[2:], strict=True))
        return "avg_pool" if even else op
    return op


def clip_bounds(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """(low, high) of a call whose canonical op is "clip"; None where a side is open or is a tensor."""
    name = getattr(function, "__name__", "").strip("_")
    if name == "relu6":
        return 0.0, 6.0
    if name == "clamp_min":
        return _number(args, kwargs, 1, "min"), None
    if name == "clamp_max":
        return None, _number(args, kwargs, 1, "max")
    low_name, high_name = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    low, high = _number(args, kwargs, 1, low_name), _number(args, kwargs, 2, high_name)
    if name == "hardtanh":
        return (-1.0 if low is None else low), (1.0 if high is None else high)
    return low, high


def _number(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> float | None:
    value = args[position] if len(args) > position else kwargs.get(name)
    return float(value) if isinstance(value, (int, float)) else None
