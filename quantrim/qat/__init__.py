"""Quantization-aware training of any nn.Module, exported exactly as it was trained."""

from quantrim.qat.config import QATConfig, method
from quantrim.qat.distill import Distillation, Distiller, distillation_loss
from quantrim.qat.export import ExportResult
from quantrim.qat.qat import QAT
from quantrim.qat.seed_config import SeedSettings, config_from_seed

__all__ = [
    "QAT", "Distillation", "Distiller", "ExportResult", "QATConfig", "SeedSettings", "config_from_seed",
    "distillation_loss", "method",
]  # fmt: skip
