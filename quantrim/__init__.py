"""Quantize and trim vision models, verified on the engine that runs them.

The verbs are ``ptq``, ``QAT``, ``prune``, ``compress``, ``inspect`` and ``bench``; each is imported when it is
first used, so that ``import quantrim`` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantrim.compression import compress
    from quantrim.engines.bench import bench
    from quantrim.engines.inspect import inspect
    from quantrim.post_training import ptq
    from quantrim.pruning import prune
    from quantrim.qat import QAT

_HOMES = {
    "QAT": "quantrim.qat",
    "bench": "quantrim.engines.bench",
    "compress": "quantrim.compression",
    "inspect": "quantrim.engines.inspect",
    "prune": "quantrim.pruning",
    "ptq": "quantrim.post_training",
}

__all__ = ["QAT", "bench", "compress", "inspect", "prune", "ptq"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("quantrim")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'quantrim' has no attribute {name!r}")
