"""The fastest file whose accuracy stays within a drop, both measured on the engine."""

from quantrim.compress.compress import RECIPES, compress
from quantrim.compress.judge import Judge, agreement_judge, metric_judge
from quantrim.compress.result import Candidate, CompressResult
from quantrim.compress.variants import Recipe

__all__ = [
    "RECIPES",
    "Candidate",
    "CompressResult",
    "Judge",
    "Recipe",
    "agreement_judge",
    "compress",
    "metric_judge",
]
