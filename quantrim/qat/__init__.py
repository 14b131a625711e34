"""Quantization-aware training of any nn.Module, exported exactly as it was trained."""

from quantrim.qat.config import QATConfig, method
from quantrim.qat.qat import QAT

__all__ = ["QAT", "QATConfig", "method"]
