"""Integer codes of constants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantrim.ranges.scales import Float32


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """A quantized constant.

    Attributes:
        codes: int8, shape of the weight.
        scales: float32[channels], or [1] per tensor.
        axis: channel dimension of the scales, None per tensor.
        bias: float32 bias to store (corrected or not), None to keep what the model has.
    """

    codes: np.ndarray
    scales: Float32
    axis: int | None
    bias: np.ndarray | None = None
