"""Measures of each task against slow references."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantrim.detection import Detections, YoloXDecoder
from quantrim.judges.measures import BoxMeasure, ClassMeasure, MapMeasure, SequenceMeasure, edit_distance

WORDS = st.lists(st.integers(0, 3), max_size=8)


@given(WORDS, WORDS)
def test_edit_distance_is_levenshteins(one, two):
    @cache
    def slow(i, j):
        if 0 in (i, j):
            return i + j
        same = slow(i - 1, j - 1) + (one[i - 1] != two[j - 1])
        return min(same, slow(i - 1, j) + 1, slow(i, j - 1) + 1)

    assert edit_distance(one, two) == slow(len(one), len(two))


def scored(measure, wanted, got, canvas=None):
    pair = [measure.read({"y": array}, canvas) for array in (wanted, got)]
    return measure.score(measure.pair(*pair))


def test_strings_are_decoded_as_ctc_does():
    text = np.eye(5, dtype=np.float32)[[[0, 1, 1, 0, 1, 2, 0, 3]]]  # classes 1 1 2 3 behind repeats and blanks
    other = np.eye(5, dtype=np.float32)[[[1, 0, 1, 1, 0, 2, 2, 4]]]
    found = scored(SequenceMeasure("y"), text, other)
    assert found.value == 0.75
    assert found.figures == {"strings_equal": 0.0, "steps_same": pytest.approx(2 / 8)}
    swapped = scored(SequenceMeasure("y", time_first=True), text.swapaxes(0, 1), other.swapaxes(0, 1))
    assert swapped == found


def test_a_small_class_that_is_lost_shows_in_the_map_and_not_in_the_pixels():
    wanted = np.zeros((4, 2, 32, 32), np.float32)
    wanted[:, 1, 10:14, 10:14] = 1
    found = scored(MapMeasure("y", 1), wanted, np.zeros_like(wanted))
    assert found.figures["pixels_same"] > 0.98
    assert found.value == pytest.approx((1 - 16 / 1024) / 2)


@given(st.integers(0, 2**32 - 1))
def test_the_map_is_scored_as_written_out(seed):
    generator = np.random.default_rng(seed)
    wanted, got = generator.integers(-1, 4, (2, 3, 6, 6))
    found = scored(MapMeasure("y", None), wanted, got)
    classes = np.unique(wanted)
    ious = [np.sum((wanted == c) & (got == c)) / np.sum((wanted == c) | (got == c)) for c in classes]
    assert found.value == pytest.approx(np.mean(ious))


@pytest.mark.parametrize(("shape", "axis"), [((8, 5), 1), ((8, 5, 1, 1), 1), ((8, 1, 5), 2)])
def test_classes_are_counted_whatever_the_rank(shape, axis):
    generator = np.random.default_rng(0)
    wanted, got = generator.standard_normal((2, *shape)).astype(np.float32)
    same = (wanted.reshape(8, 5).argmax(1) == got.reshape(8, 5).argmax(1)).mean()
    found = scored(ClassMeasure("y", axis), wanted, got)
    assert found.value == same
    assert found.low < same < found.high


def boxes_of(count, generator):
    corner = generator.uniform(0, 40, (count, 2))
    return np.concatenate([corner, corner + generator.uniform(8, 20, (count, 2))], axis=1).astype(np.float32)


def test_boxes_that_are_gone_cost_what_they_are_worth():
    generator = np.random.default_rng(0)
    images = [Detections(boxes_of(5, generator), np.full(5, 0.9, np.float32), np.arange(5)) for _ in range(8)]
    half = [one[:3] for one in images]
    measure = BoxMeasure(("y",), lambda outputs, canvas: list(outputs[0]))
    found = measure.score(measure.pair(images, half))
    assert found.figures["boxes_kept"] == 0.6
    assert 0.55 < found.value < 0.65
    assert found.low <= found.value <= found.high
    assert measure.score(measure.pair(images, images)).value == pytest.approx(1)


def test_a_decoder_that_is_data_reads_the_outputs():
    rows = np.full((1, 21, 6), -6.0, np.float32)
    rows[0, 3] = (0.5, 0.5, 1.0, 1.0, 5.0, 5.0)
    measure = BoxMeasure(("y",), YoloXDecoder(1, (8, 16, 32)))
    (found,) = measure.read({"y": rows}, (32, 32))
    assert len(found) == 1
