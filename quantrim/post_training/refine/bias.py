"""Bias correction: the mean error that rounding leaves in each channel goes into the bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section
4.2, in its empirical form. The mean is taken with the inputs that the quantized layers before give, so
that errors don't add up along the network (Banner et al. correct each layer alone). A channel's mean
squared error falls by the square of its mean error, so the layer is never worse on the samples seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from quantrim.post_training.refine.walk import Step, dequantize
from quantrim.ranges.codes import WeightCodes


def correct_bias(step: Step) -> WeightCodes:
    """Codes of a layer with a bias that removes the mean error of each output channel."""
    if step.operator.op_type == "MatMul":  # has no bias operand
        return step.codes
    error = step.y - step.run(step.x, dequantize(step.codes), step.bias)
    axes = tuple(axis for axis in range(error.ndim) if axis != _channel_axis(step))
    shift = error.mean(axis=axes, dtype=np.float64)
    bias = shift if step.bias is None else step.bias + shift
    return dataclasses.replace(step.codes, bias=bias.astype(np.float32))


def _channel_axis(step: Step) -> int:
    return step.y.ndim - 1 if step.node.op == "linear" else 1
