"""Post-training quantization: any vision model in, a verified INT8 file out."""

from quantrim.post_training.config import PtqConfig
from quantrim.post_training.ptq import PtqResult, ptq
from quantrim.post_training.synthesis import DataFree

__all__ = ["DataFree", "PtqConfig", "PtqResult", "ptq"]
