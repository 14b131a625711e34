"""Each estimator against a slow and obvious reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.errors import ConfigError
from quantrim.ranges import ESTIMATORS, Sketch, range_of
from quantrim.ranges.estimators import (
    Range,
    abs_histogram,
    kl_threshold,
    mse_range,
    percentile_range,
    requantized,
)


def sketch_of(array: np.ndarray) -> Sketch:
    sketch = Sketch()
    sketch.add(np.asarray(array, np.float32))
    return sketch


def slow_kl_threshold(histogram: np.ndarray, levels: int) -> float:
    """The loop over thresholds, bins and levels that the vectorised search replaces."""
    bins, best, best_divergence = len(histogram), float(len(histogram)), np.inf
    total = histogram.sum()
    for keep in range(levels, bins + 1):
        p = histogram[:keep].astype(np.float64).copy()
        outliers = histogram[keep:].sum()
        p[-1] += outliers
        q = np.zeros(keep)
        for level in range(levels):
            start, stop = keep * level // levels, keep * (level + 1) // levels
            filled = histogram[start:stop] > 0
            if filled.any():
                q[start:stop][filled] = histogram[start:stop].sum() / filled.sum()
        if (p[q == 0] > 0).any():
            continue
        p, q = p / total, q / q.sum()
        some = p > 0
        divergence = float((p[some] * np.log(p[some] / q[some])).sum())
        if divergence < best_divergence - 1e-12:
            best, best_divergence = min(keep + 0.5, float(bins)), divergence
    return best


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 16, 31]))
def test_kl_search_equals_the_plain_loop(seed, levels):
    generator = np.random.default_rng(seed)
    histogram = np.floor(generator.exponential(20, 128) * (np.arange(128) < generator.integers(40, 129)))
    histogram[: levels + 1] += 1
    fast, slow = kl_threshold(histogram, levels), slow_kl_threshold(histogram, levels)
    assert fast == slow


def test_kl_clips_a_lonely_outlier_and_keeps_a_uniform_range():
    generator = np.random.default_rng(0)
    with_outlier = np.append(generator.standard_normal(15_000), 12.0).reshape(1, -1)
    assert range_of(sketch_of(with_outlier), "kl", symmetric=False).high < 7


def test_kl_does_not_collapse_on_a_tensor_with_most_of_its_mass_at_zero():
    generator = np.random.default_rng(0)
    relu6 = np.clip(generator.standard_normal((1, 16_000)) * 3 - 2, 0, 6)
    assert range_of(sketch_of(relu6), "kl", symmetric=False).high >= 3
    uniform = generator.uniform(0, 4, (1, 16_000))
    assert range_of(sketch_of(uniform), "kl", symmetric=False).high > 3.7


def test_abs_histogram_of_the_sketch_is_close_to_the_exact_one():
    values = np.random.default_rng(1).standard_normal((1, 16_000)).astype(np.float32)
    exact, _ = np.histogram(np.abs(values), bins=64, range=(0, np.abs(values).max()))
    got = abs_histogram(sketch_of(values), bins=64)
    assert got.sum() == pytest.approx(values.size)
    assert np.abs(np.cumsum(got) - np.cumsum(exact)).max() < 0.01 * values.size


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.9, 0.99, 1.0]))
def test_percentile_equals_the_sorted_values(seed, percent):
    values = np.random.default_rng(seed).standard_normal((1, 4001)).astype(np.float32)
    exact = np.sort(np.abs(values.ravel()))[max(int(np.ceil(percent * values.size)) - 1, 0)]
    kept = percentile_range(sketch_of(values), percent)
    threshold = min(max(-kept.low, kept.high), exact)
    assert threshold == pytest.approx(exact, rel=2**-7)


def test_avg_is_the_mean_of_the_largest_magnitude_of_each_sample():
    values = np.array([[1, -3, 2], [5, 0, 1]], np.float32)
    kept = range_of(sketch_of(values), "avg", symmetric=True)
    assert (kept.low, kept.high) == (-3, 4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_never_worse_than_the_whole_range_and_near_a_fine_search(symmetric):
    generator = np.random.default_rng(2)
    values = np.append(generator.laplace(0, 1, 12_000), [14, -9]).astype(np.float32)

    def error(kept: Range) -> float:
        return float(np.square(values - requantized(values.astype(np.float64), kept, symmetric)).mean())

    found = error(mse_range(sketch_of(values.reshape(1, -1)), symmetric))
    whole = Range(float(values.min()), float(values.max()))
    fine = min(error(Range(whole.low * f, whole.high * f)) for f in np.linspace(0.2, 1, 200))
    assert found <= error(whole)
    assert found <= fine * 1.02


@pytest.mark.parametrize("algo", sorted(ESTIMATORS))
def test_a_tensor_that_is_never_negative_keeps_low_at_zero(algo):
    values = np.abs(np.random.default_rng(3).standard_normal((4, 500)))
    kept = range_of(sketch_of(values), algo, symmetric=False)
    assert kept.low == 0
    assert 0 < kept.high <= values.max() * 1.0001


@pytest.mark.parametrize("algo", sorted(ESTIMATORS))
def test_a_tensor_of_zeros_gives_an_empty_range_instead_of_a_crash(algo):
    assert range_of(sketch_of(np.zeros((2, 100))), algo, symmetric=False) == Range(0, 0)


def test_an_unknown_algorithm_is_answered_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'min_max'"):
        range_of(sketch_of(np.ones((1, 4))), "minmax", symmetric=False)  # type: ignore[arg-type]
