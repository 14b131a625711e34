"""PaddleSlim's calls and settings over quantrim's own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantrim.paddle.post_training import PostTrainingQuantization
    from quantrim.paddle.qat import QAT, convert, quant_aware, save_quantized_model
    from quantrim.paddle.settings import OPERATORS, PaddleSettings, config_from_paddle

#: Where each name lives; imported when first used, since quantization after training needs no torch.
_HOMES = {
    "PostTrainingQuantization": "post_training",
    **dict.fromkeys(("QAT", "convert", "quant_aware", "save_quantized_model"), "qat"),
    **dict.fromkeys(("OPERATORS", "PaddleSettings", "config_from_paddle"), "settings"),
}

__all__ = [
    "OPERATORS",
    "QAT",
    "PaddleSettings",
    "PostTrainingQuantization",
    "config_from_paddle",
    "convert",
    "quant_aware",
    "save_quantized_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quantrim.paddle' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quantrim.paddle.{_HOMES[name]}"), name)
