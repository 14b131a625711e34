"""What the judges measure, against the formula written out."""

import numpy as np
import pytest

from quantrim.compression import agreement_judge, metric_judge
from quantrim.engines import Port
from quantrim.errors import DataError, EngineError


class Fixed:
    """A session that gives stored answers, batch by batch."""

    engine = "openvino"

    def __init__(self, answers):
        self.answers = iter(answers)
        self.outputs = (Port("y", answers[0].shape, answers[0].dtype),)

    def run(self, feed):
        return {"y": next(self.answers)}


def batches(generator, *shape):
    return [generator.standard_normal((size, *shape)).astype(np.float32) for size in (4, 4, 3)]


def feeds(arrays):
    """Batches of small images, one for each batch of answers."""
    return lambda: [{"x": np.zeros((len(one), 3, 5, 7), np.float32)} for one in arrays]


def test_agreement_counts_samples_of_the_same_class():
    generator = np.random.default_rng(0)
    want, got = batches(generator, 10), batches(generator, 10)
    judge = agreement_judge(Fixed(want), feeds(want))
    same = np.concatenate([w.argmax(1) == g.argmax(1) for w, g in zip(want, got, strict=True)])
    assert judge.points(Fixed(got)) == pytest.approx(100 * same.mean())
    assert judge.points(Fixed(want)) == 100
    assert (judge.images, judge.step) == (11, pytest.approx(100 / 11))


def test_maps_of_classes_are_compared_class_by_class():
    generator = np.random.default_rng(0)
    want, got = batches(generator, 4, 5, 7), batches(generator, 4, 5, 7)
    judge = agreement_judge(Fixed(want), feeds(want))
    w, g = (np.concatenate([one.argmax(1).ravel() for one in arrays]) for arrays in (want, got))
    ious = [np.sum((w == c) & (g == c)) / np.sum((w == c) | (g == c)) for c in range(4)]
    assert judge.points(Fixed(got)) == pytest.approx(100 * np.mean(ious))
    assert (judge.name, judge.step) == ("mIoU with FP32's map", None)


def test_files_that_end_with_arg_max_are_compared_class_by_class():
    want = [np.array([[1, 2], [0, 300]])]
    got = [np.array([[1, 2], [7, 300]])]
    judge = agreement_judge(Fixed(want), feeds(want))
    assert judge.points(Fixed(got)) == 75


@pytest.mark.parametrize("shape", [(1,), (84, 20)])
def test_scores_and_boxes_are_compared_value_by_value(shape):
    generator = np.random.default_rng(0)
    want, got = batches(generator, *shape), batches(generator, *shape)
    judge = agreement_judge(Fixed(want), feeds(want))
    e, g = (np.concatenate([array.reshape(len(array), -1) for array in one]) for one in (want, got))
    near = [one + 0.1 * two for one, two in zip(want, got, strict=True)]
    distance = np.median(np.linalg.norm(g, axis=1) / np.linalg.norm(e, axis=1))
    assert judge.points(Fixed(near)) == pytest.approx(100 - 10 * distance, abs=1e-2)
    assert judge.points(Fixed([-array for array in want])) == 0
    assert judge.name == "agreement with FP32"
    assert judge.step is None


def test_the_output_that_agrees_least_counts():
    class Two(Fixed):
        def __init__(self, one, two):
            super().__init__([one])
            self.outputs = tuple(Port(name, one.shape, one.dtype) for name in ("a", "b"))
            self.values = {"a": one, "b": two}

        def run(self, feed):
            return self.values

    logits = np.eye(4, dtype=np.float32)
    judge = agreement_judge(Two(logits, logits), feeds([logits]))
    assert judge.points(Two(logits, np.roll(logits, 1, axis=0))) == 0
    assert judge.points(Two(logits, logits)) == 100


def test_negative_classes_and_single_values_are_compared():
    want, got = [np.array([-1, 300])], [np.array([-1, 7])]
    assert agreement_judge(Fixed(want), feeds(want)).points(Fixed(got)) == 50
    want, got = [np.array([-1, 2])], [np.array([255, 2])]
    assert agreement_judge(Fixed(want), feeds(want)).points(Fixed(got)) == 50
    scalar = [np.array([2.0], np.float32)]
    assert agreement_judge(Fixed(scalar), feeds(scalar)).points(Fixed([np.array([1.0])])) == pytest.approx(50)


def test_nothing_to_judge_on_is_an_error():
    with pytest.raises(DataError, match="no image is left"):
        agreement_judge(Fixed([np.zeros((1, 2))]), lambda: [])


def test_a_metric_counts_in_points_and_must_be_a_number():
    session = Fixed([np.zeros((1, 2))])
    assert metric_judge(lambda one: {"mIoU": 0.875}, "mIoU", 8).points(session) == 87.5
    with pytest.raises(EngineError, match="mIoU"):
        metric_judge(lambda one: {"mIoU": float("nan")}, "mIoU", 8).points(session)
