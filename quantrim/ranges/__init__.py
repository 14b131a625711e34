"""Tensor statistics → ranges → scales: pure functions over mergeable sketches."""

from quantrim.ranges.estimators import ESTIMATORS, Algo, Range, range_of
from quantrim.ranges.scales import (
    ActivationScale,
    WeightAlgo,
    activation_scale,
    quantize_bias,
    quantize_weight,
    weight_scales,
    widen_for_bias,
)
from quantrim.ranges.sketch import Sketch

__all__ = [
    "ESTIMATORS",
    "ActivationScale",
    "Algo",
    "Range",
    "Sketch",
    "WeightAlgo",
    "activation_scale",
    "quantize_bias",
    "quantize_weight",
    "range_of",
    "weight_scales",
    "widen_for_bias",
]  # fmt: skip
