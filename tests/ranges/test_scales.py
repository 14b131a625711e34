import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.ranges import (
    Range,
    activation_scale,
    quantize_bias,
    quantize_weight,
    weight_scales,
    widen_for_bias,
)
from quantrim.ranges.scales import DEAD_CHANNEL_SHARE


@settings(max_examples=100, deadline=None)
@given(st.floats(-100, 0), st.floats(0, 100))
def test_affine_codes_cover_the_range_within_half_a_step_and_zero_is_exact(low, high):
    scale = activation_scale(Range(low, high), "u8")
    assert 0 <= scale.zero_point <= 255
    assert (0 - scale.zero_point) * scale.scale <= low + scale.scale
    assert (255 - scale.zero_point) * scale.scale >= high - scale.scale


def test_symmetric_codes_have_zero_point_zero():
    scale = activation_scale(Range(-2, 1), "s8")
    assert (scale.scale, scale.zero_point, scale.signed) == (pytest.approx(2 / 127), 0, True)


@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_scales_cover_each_channel(axis):
    weight = np.random.default_rng(0).standard_normal((4, 6, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, axis)
    codes = quantize_weight(weight, scales, axis)
    assert scales.shape == (weight.shape[axis],)
    assert np.abs(codes).max(axis=tuple(d for d in range(4) if d != axis)).tolist() == [127] * len(scales)


def test_a_dead_channel_gets_no_scale_of_its_own():
    weight = np.ones((2, 4), np.float32)
    weight[1] = 1e-12
    scales = weight_scales(weight, 0)
    assert scales[1] == pytest.approx(DEAD_CHANNEL_SHARE / 127)


def test_mse_scales_are_never_worse_than_abs_max():
    weight = np.random.default_rng(1).standard_t(3, (8, 200)).astype(np.float32)

    def error(scales):
        return np.square(weight - quantize_weight(weight, scales, 0) * scales[:, None]).sum(axis=1)

    assert (error(weight_scales(weight, 0, "mse")) <= error(weight_scales(weight, 0)) + 1e-6).all()


def test_scales_are_widened_until_the_bias_fits_32_bits():
    bias = np.array([1e6, 1.0], np.float32)
    scales = np.array([1e-8, 1e-2], np.float32)
    wide = widen_for_bias(scales, 1e-4, bias)
    assert wide[1] == scales[1]
    real = quantize_bias(bias, wide, 1e-4).astype(np.float64) * 1e-4 * wide
    np.testing.assert_allclose(real, bias, rtol=1e-5)
