"""The batcher: same results as one by one, in batches that never mix shapes and never lose anybody."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.serving.batcher import MicroBatcher
from quantrim.serving.limits import Refusal


def double_sum(images: np.ndarray) -> np.ndarray:
    return 2 * images.reshape(len(images), -1).sum(axis=1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([(1, 2, 2), (1, 3, 2)]), min_size=1, max_size=24),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_every_image_gets_its_own_answer_whatever_runs_together(shapes, max_batch, workers):
    sizes = []
    batcher = MicroBatcher(
        [double_sum] * workers, max_batch=max_batch, max_wait_ms=1, on_batch=lambda size: sizes.append(size)
    )
    images = [np.full(shape, index, np.float32) for index, shape in enumerate(shapes)]
    answers = [batcher.submit(image) for image in images]
    got = [answer.result(timeout=10) for answer in answers]
    batcher.close()
    assert got == [2 * index * np.prod(shape) for index, shape in enumerate(shapes)]
    assert sum(sizes) == len(shapes)
    assert max(sizes) <= max_batch


def test_images_that_arrive_while_the_model_is_busy_run_as_one_batch():
    busy, sizes = threading.Event(), []

    def wait_once(images: np.ndarray) -> np.ndarray:
        busy.wait(10)
        return double_sum(images)

    batcher = MicroBatcher([wait_once], max_batch=8, max_wait_ms=0, on_batch=sizes.append)
    answers = [batcher.submit(np.ones((1, 1, 1), np.float32))]
    while batcher.waiting:
        time.sleep(0.001)
    answers += [batcher.submit(np.ones((1, 1, 1), np.float32)) for _ in range(5)]
    busy.set()
    assert [answer.result(timeout=10) for answer in answers] == [2.0] * 6
    batcher.close()
    assert sizes == [1, 5]


def test_a_lone_image_waits_no_longer_than_it_was_told():
    batcher = MicroBatcher([double_sum], max_batch=8, max_wait_ms=50)
    start = time.monotonic()
    batcher.submit(np.ones((1, 1, 1), np.float32)).result(timeout=10)
    batcher.close()
    assert 0.045 < time.monotonic() - start < 2


def test_a_failing_batch_tells_everybody_in_it_and_the_next_one_works():
    def fail_on_negative(images: np.ndarray) -> np.ndarray:
        if images.min() < 0:
            raise RuntimeError("engine says no")
        return double_sum(images)

    batcher = MicroBatcher([fail_on_negative], max_batch=2, max_wait_ms=100)
    bad = [batcher.submit(np.full((1, 1, 1), value, np.float32)) for value in (-1, 1)]
    good = batcher.submit(np.ones((1, 1, 1), np.float32))
    for answer in bad:
        with pytest.raises(RuntimeError, match="engine says no"):
            answer.result(timeout=10)
    assert good.result(timeout=10) == 2.0
    batcher.close()


def test_a_full_waiting_room_and_a_stopped_service_refuse():
    stuck = threading.Event()
    batcher = MicroBatcher([lambda images: stuck.wait(10) and images], max_batch=1, max_waiting=2)
    image = np.ones((1, 1, 1), np.float32)
    first = batcher.submit(image)
    while batcher.waiting:
        time.sleep(0.001)
    others = [batcher.submit(image) for _ in range(2)]
    with pytest.raises(Refusal, match="2 images wait already"):
        batcher.submit(image)
    stuck.set()
    batcher.close()  # answers those who wait
    assert all(answer.done() for answer in (first, *others))
    with pytest.raises(Refusal, match="stopping"):
        batcher.submit(image)


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_wait_ms": -1}, {"max_waiting": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least"):
        MicroBatcher([double_sum], **wrong)
