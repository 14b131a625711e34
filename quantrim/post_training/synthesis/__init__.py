"""Calibration images for a model whose data nobody may see."""

from quantrim.post_training.synthesis.data_free import DataFree

__all__ = ["DataFree"]
