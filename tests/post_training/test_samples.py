"""Calibration data that would spoil a file are named, or left out."""

import numpy as np
import pytest

from quantrim.errors import DataError
from quantrim.post_training.samples import Samples

CLEAN = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)


def feeds(array, size=2, name="x"):
    return [{name: array[start : start + size]} for start in range(0, len(array), size)]


def good(array, **options):
    looked = Samples(feeds(array), **options)
    kept = list(looked.good(iter(feeds(array))))
    return looked, kept


def test_clean_data_pass_as_they_are_and_nothing_is_said():
    looked, kept = good(CLEAN)
    assert looked.notes == ()
    np.testing.assert_array_equal(np.concatenate([one["x"] for one in kept]), CLEAN)


@pytest.mark.parametrize("spoil", [lambda a: a.__setitem__((3, 0, 2, 2), 1e6), lambda a: a[3].__imul__(200)])
def test_a_sample_far_outside_is_left_out_and_named(spoil):
    data = CLEAN.copy()
    spoil(data)
    looked, kept = good(data)
    assert "1 calibration sample was left out as outlier (sample 3: input 'x' reaches" in looked.notes[0]
    assert sum(len(one["x"]) for one in kept) == 16
    assert max(float(np.abs(one["x"]).max()) for one in kept) < 10
    assert max(float(np.abs(one["x"]).max()) for one in good(data, keep_outliers=True)[1]) > 100


def test_outliers_behind_the_first_batches_are_found_too():
    data = CLEAN.copy()
    data[-1] *= 1e5
    looked = Samples(feeds(data[:8]))
    list(looked.good(iter(feeds(data))))
    assert "sample 15" in looked.notes[0]


def test_data_of_which_most_are_outliers_are_refused_with_the_way_out():
    data = CLEAN.copy()
    data[:9, 0, 0, 0] = 1e6
    with pytest.raises(DataError, match=r"9 of the first 16 .* sample 0: .*keep_outliers"):
        good(data)
    assert good(data, keep_outliers=True)[0].notes == ()


@pytest.mark.parametrize("data", [CLEAN * 0, CLEAN * 0 + 1, CLEAN * 0 + CLEAN[:, :1, :1, :1], CLEAN[:1] * 0])
def test_data_without_variation_are_refused(data):
    with pytest.raises(DataError, match=r"without variation: input 'x' is"):
        good(data)


def test_a_second_input_may_be_constant_and_numbers_need_no_variation_within_a_sample():
    batch = [{"x": CLEAN, "scale": np.ones((16, 2), np.float32)}]
    assert Samples(batch).notes == ()
    assert Samples([{"x": CLEAN[:, 0, 0, :1]}]).notes == ()


def test_pixels_that_nobody_normalised_are_told():
    looked, _ = good(np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8)).astype(np.float32))
    assert "whole numbers up to 255" in looked.notes[0]
    assert good(np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8)).astype(np.uint8))[0].notes == ()
