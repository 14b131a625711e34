import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantrim.errors import DataError
from quantrim.ranges.sketch import MAX_COUNTED, Sketch

finite = st.floats(-1e4, 1e4, width=32)
batches = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=8), elements=finite)


def sketch_of(*arrays: np.ndarray) -> Sketch:
    sketch = Sketch()
    for array in arrays:
        sketch.add(array)
    return sketch


@settings(max_examples=60, deadline=None)
@given(batches, batches)
def test_merging_two_sketches_equals_sketching_both_data_sets(one, two):
    merged, together = sketch_of(one).merge(sketch_of(two)), sketch_of(one, two)
    assert (merged.low, merged.high, merged.samples) == (together.low, together.high, together.samples)
    assert merged.abs_max_sum == pytest.approx(together.abs_max_sum)
    np.testing.assert_array_equal(merged.counts, together.counts)


@settings(max_examples=60, deadline=None)
@given(batches)
def test_every_value_is_counted_within_one_bfloat16_step(array):
    values, weights = sketch_of(array).values()
    assert weights.sum() == array.size
    expected = np.sort(array.ravel().astype(np.float64))
    got = np.repeat(values, weights.astype(int))
    np.testing.assert_allclose(got, expected, rtol=2**-7, atol=1e-37)


def test_extremes_are_exact_even_where_the_counters_only_sample():
    array = np.zeros((1, MAX_COUNTED * 7), np.float32)
    array[0, 12_345], array[0, 54_321] = 3.14159, -2.71828
    sketch = sketch_of(array)
    assert sketch.high == np.float32(3.14159)
    assert sketch.low == np.float32(-2.71828)


def test_memory_of_a_sketch_does_not_grow_with_the_number_of_batches():
    sketch = Sketch()
    for seed in range(60):
        sketch.add(np.random.default_rng(seed).standard_normal((2, 20_000)).astype(np.float32))
        assert sum(codes.nbytes for codes in sketch._pending) < 2_000_000


def test_nan_is_refused_with_the_tensor_named():
    with pytest.raises(DataError, match="'conv1' holds NaN"):
        Sketch().add(np.array([[1.0, np.nan]], np.float32), name="conv1")


def test_an_empty_sketch_says_that_no_sample_was_seen():
    with pytest.raises(DataError, match="no sample"):
        Sketch().values()


def test_zero_sized_batches_are_ignored():
    sketch = sketch_of(np.zeros((0, 4), np.float32), np.ones((1, 4), np.float32))
    assert sketch.samples == 1
