"""The fastest file whose accuracy stays within a drop, both measured on the engine."""

from quantrim.compression.compress import RECIPES, Offers, compress
from quantrim.compression.judge import Judge, agreement_judge, metric_judge
from quantrim.compression.result import Candidate, CompressResult
from quantrim.compression.tuning import Tuning
from quantrim.compression.variants import Variant

__all__ = [
    "RECIPES",
    "Candidate",
    "CompressResult",
    "Judge",
    "Offers",
    "Tuning",
    "Variant",
    "agreement_judge",
    "compress",
    "metric_judge",
]
