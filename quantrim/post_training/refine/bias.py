"""Bias correction: the mean error that rounding leaves in each channel goes into the bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section
4.2, in its empirical form. The mean is taken with the inputs that the quantized layers before give, so
that errors don't add up along the network (Banner et al. correct each layer alone). A channel's mean
squared error falls by the square of its mean error, so the layer is never worse on the samples seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from quantrim.post_training.refine.walk import Batches, Step
from quantrim.ranges.codes import WeightCodes


def correct_bias(step: Step) -> WeightCodes:
    """Codes of a layer with a bias that removes the mean error of each output channel."""
    if step.operator.op_type == "MatMul":  # has no bias operand
        return step.codes
    shift = _sums(step, step.float_outputs) - _sums(step, step.int8_outputs)
    shift /= sum(batch.size for batch in step.int8_outputs) // shift.size
    bias = shift if step.bias is None else step.bias + shift
    return dataclasses.replace(step.codes, bias=bias.astype(np.float32))


def _sums(step: Step, batches: Batches) -> np.ndarray:
    """Sum of each channel over all batches, float64[channels]."""
    axes = tuple(axis for axis in range(batches[0].ndim) if axis != step.channel_axis)
    return np.sum([batch.sum(axis=axes, dtype=np.float64) for batch in batches], axis=0)
