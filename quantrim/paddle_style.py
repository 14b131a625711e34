"""Old name of :mod:`quantrim.paddle.post_training`; it answers for one release."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    warnings.warn("quantrim.paddle_style is quantrim.paddle now", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module("quantrim.paddle.post_training"), name)
