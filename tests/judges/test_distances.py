"""Numbers a sample, against the formulas written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantrim.judges import Distances
from quantrim.judges.distances import MOST_DB, bootstrap_mean, wilson, worst_decile

VALUES = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
PAIRS = st.tuples(*[arrays(np.float32, (5, 7), elements=VALUES)] * 2)


@given(PAIRS)
def test_every_sample_has_its_own_numbers(pair):
    wanted, got = (array.astype(np.float64) for array in pair)
    found = Distances.of(*pair)
    floor = 1e-6 * np.median((wanted**2).sum(1))
    for place in range(5):
        signal, noise = (wanted[place] ** 2).sum(), ((wanted[place] - got[place]) ** 2).sum()
        if noise == 0:
            assert (found.sqnr_db[place], found.cosine[place]) == (MOST_DB, 1.0)
            assert found.relative_error[place] == 0
        elif signal > floor:
            assert found.sqnr_db[place] == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
            assert found.relative_error[place] == pytest.approx(np.sqrt(noise / signal), rel=1e-3)
    assert (np.abs(found.cosine) <= 1).all()
    assert (np.abs(found.sqnr_db) <= MOST_DB).all()


def test_one_loud_sample_does_not_hide_lost_ones():
    wanted = np.random.default_rng(0).standard_normal((32, 10))
    got = wanted + np.random.default_rng(1).standard_normal((32, 10))
    wanted[0] = got[0] = 1e6
    decibel = Distances.of(wanted, got).sqnr_db
    assert np.median(decibel) < 3
    assert worst_decile(decibel) < 0


def test_equal_outputs_have_no_noise_even_where_they_are_zero_or_infinite():
    wanted = np.array([[0.0, 0.0], [1.0, -np.inf]])
    assert (Distances.of(wanted, wanted).sqnr_db == MOST_DB).all()


def test_numbers_that_became_nan_are_lost():
    found = Distances.of(np.ones((2, 3)), np.array([[1, np.nan, 1], [1, 1, 1]]))
    assert np.isinf(found.noise[0])
    assert found.sqnr_db.tolist() == [-MOST_DB, MOST_DB]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(share):
    generator, held, bootstrapped = np.random.default_rng(0), 0, 0
    for _ in range(300):
        drawn = (generator.random(60) < share).astype(float)
        low, high = wilson(drawn.sum(), 60)
        held += low <= share <= high
        low, high = bootstrap_mean(drawn)
        bootstrapped += low <= share <= high
    assert held > 0.92 * 300
    assert bootstrapped > 0.85 * 300


def test_the_worst_decile_is_a_value_that_was_seen():
    values = np.arange(20.0)
    assert worst_decile(values) == 1
    assert worst_decile(values, high_is_good=False) == 18
