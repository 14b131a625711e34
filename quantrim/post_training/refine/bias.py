"""Bias correction: the mean error that rounding leaves in each channel goes into the bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section
4.2, in its empirical form. The mean is taken with the inputs that the quantized layers before give, so
that errors don't add up along the network (Banner et al. correct each layer alone).

A mean over few samples is a guess, and what is wrong in it is an error of its own. So each channel's mean is
shrunk by what its samples disagree, as James and Stein have it ("Estimation with Quadratic Loss", 1961): by
1 - (standard error / mean)^2, and to nothing where the standard error is the larger one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from quantrim.post_training.refine.walk import Batches, Step
from quantrim.ranges.codes import WeightCodes


def correct_bias(step: Step) -> WeightCodes:
    """Codes of a layer with a bias that removes each output channel's mean error, as far as it is known."""
    if step.operator.op_type == "MatMul":  # has no bias operand
        return step.codes
    shift = _known(_means(step, step.float_outputs) - _means(step, step.int8_outputs))
    bias = shift if step.bias is None else step.bias + shift
    return dataclasses.replace(step.codes, bias=bias.astype(np.float32))


def _means(step: Step, batches: Batches) -> np.ndarray:
    """Mean of each sample and channel, float64[samples, channels]."""
    if step.channel_axis == 0:  # no axis counts samples
        return np.array([batch.astype(np.float64) for batch in batches])
    axes = tuple(axis for axis in range(1, batches[0].ndim) if axis != step.channel_axis)
    return np.concatenate([batch.mean(axis=axes, dtype=np.float64) for batch in batches])


def _known(errors: np.ndarray) -> np.ndarray:
    """Mean error of each channel, shrunk by how little is known of it.

    Args:
        errors: float64[samples, channels].
    """
    mean = errors.mean(axis=0)
    if len(errors) < 2:
        return mean
    variance = errors.var(axis=0, ddof=1) / len(errors)
    square = np.maximum(np.square(mean), np.finfo(np.float64).tiny)
    return mean * np.clip(1 - variance / square, 0, 1)
