"""Batches on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.compression.spool import Spool


def feeds(sizes):
    return [
        {"image": np.full((size, 2), index, np.float32), "file": np.full((size, 1), index)}
        for index, size in enumerate(sizes)
    ]


def test_batches_come_back_in_order_under_their_names_as_often_as_asked(tmp_path):
    spool = Spool.of(iter(feeds([2, 2, 1])), tmp_path)
    for _ in range(2):
        for got, want in zip(spool, feeds([2, 2, 1]), strict=True):
            assert got.keys() == want.keys()
            for name in want:
                np.testing.assert_array_equal(got[name], want[name])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 80))
def test_a_split_parts_the_batches_and_spreads_the_first_over_all(tmp_path_factory, count, samples):
    spool = Spool.of(feeds([2] * count), tmp_path_factory.mktemp("spool"))
    first, rest = spool.split(samples)
    if samples >= 2 * count or count == 1:
        assert first is rest is spool
        return
    assert sorted([*first.paths, *rest.paths]) == sorted(spool.paths)
    assert first.paths
    assert rest.paths
    if samples > 2:
        assert sum(first.sizes) == pytest.approx(samples, abs=2)
    numbers = [int(feed["image"][0, 0]) for feed in first]
    gaps = np.diff([-1, *numbers, count])
    assert gaps.max() <= np.ceil(2 * count / samples) + 1
