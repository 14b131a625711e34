"""PaddleSlim's calls and settings over quantrim's own."""

from quantrim.paddle.post_training import PostTrainingQuantization
from quantrim.paddle.qat import QAT, convert, quant_aware, save_quantized_model
from quantrim.paddle.settings import OPERATORS, PaddleSettings, config_from_paddle

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
