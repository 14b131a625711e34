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


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400), st.floats(-12, 3), st.floats(-6, 6), st.floats(-4, 2), st.sampled_from([0, 1, None]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_bias_and_the_worst_products_never_leave_int32(
    inputs, weight_power, bias_power, source_power, axis, seed
):
    generator = np.random.default_rng(seed)
    shape = (inputs, 4) if axis == 1 else (4, inputs)
    weight = (generator.standard_normal(shape) * 10.0**weight_power).astype(np.float32)
    bias = (generator.standard_normal(4) * 10.0**bias_power).astype(np.float32)
    source = 10.0**source_power
    wide = widen_for_bias(weight_scales(weight, axis), source, bias, weight, axis or 0)
    codes = quantize_weight(weight, wide, axis).astype(np.int64)
    largest = 255 * np.abs(codes).sum(axis=0 if axis == 1 else 1)
    assert (largest + np.abs(quantize_bias(bias, wide, source).astype(np.int64)) < 2**31).all()


def test_scales_of_ordinary_layers_stay_as_they_are():
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((64, 512, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, 0)
    bias = generator.standard_normal(64).astype(np.float32)
    np.testing.assert_array_equal(widen_for_bias(scales, 0.02, bias, weight, 0), scales)
