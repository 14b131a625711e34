"""PaddleSlim's calls and settings over quantrim's own."""

from quantrim.paddle.post_training import PostTrainingQuantization
from quantrim.paddle.qat import QAT
from quantrim.paddle.settings import PaddleSettings, config_from_paddle

__all__ = ["QAT", "PaddleSettings", "PostTrainingQuantization", "config_from_paddle"]
