"""Quantize and trim vision models, verified on the engine that runs them.

The verbs are ``ptq``, ``compress``, ``inspect``, ``bench`` and ``QAT``; each is imported when it is first used,
so that ``import quantrim`` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantrim.compression import compress
    from quantrim.engines.bench import bench
    from quantrim.inspection import inspect
    from quantrim.post_training import ptq
    from quantrim.qat import QAT

_HOMES = {
    "ptq": "quantrim.post_training",
    "compress": "quantrim.compression",
    "inspect": "quantrim.inspection",
    "bench": "quantrim.engines.bench",
    "QAT": "quantrim.qat",
}

__all__ = ["QAT", "bench", "compress", "inspect", "ptq"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'quantrim' has no attribute {name!r}")
