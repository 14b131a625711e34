"""Quantization-aware training of any nn.Module, exported exactly as it was trained."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from quantrim.distillation import Distillation, Distiller, distillation_loss
from quantrim.qat.config import QATConfig, method
from quantrim.qat.export.export import ExportResult
from quantrim.qat.qat import QAT

__all__ = ["QAT", "Distillation", "Distiller", "ExportResult", "QATConfig", "distillation_loss", "method"]

#: Names that moved to quantrim.paddle, which stands above this room; they answer here for one release.
_MOVED = {"config_from_seed": "config_from_paddle", "SeedSettings": "PaddleSettings"}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'quantrim.qat' has no attribute {name!r}")
    warnings.warn(
        f"quantrim.qat.{name} is quantrim.paddle.{_MOVED[name]} now", DeprecationWarning, stacklevel=2
    )
    return getattr(importlib.import_module("quantrim.paddle"), _MOVED[name])
