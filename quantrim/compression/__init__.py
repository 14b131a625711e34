"""The fastest file whose accuracy stays within a drop, both measured on the engine."""

from quantrim.compression.analyze import GRID, Analysis, LayerCost, analyze
from quantrim.compression.compress import RECIPES, Offers, compress
from quantrim.compression.judge import Judge, agreement_judge, metric_judge
from quantrim.compression.result import Candidate, CompressResult
from quantrim.compression.tuning import Tuning
from quantrim.compression.variants import Variant

__all__ = [
    "GRID",
    "RECIPES",
    "Analysis",
    "Candidate",
    "CompressResult",
    "Judge",
    "LayerCost",
    "Offers",
    "Tuning",
    "Variant",
    "agreement_judge",
    "analyze",
    "compress",
    "metric_judge",
]
