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


@pytest.mark.parametrize("shape", [(10,), (3, 5, 7)])
def test_agreement_counts_samples_and_pixels_of_the_same_class(shape):
    generator = np.random.default_rng(0)
    want, got = batches(generator, *shape), batches(generator, *shape)
    judge = agreement_judge(Fixed(want), lambda: [{"x": array} for array in want])
    same = np.concatenate([(w.argmax(1) == g.argmax(1)).ravel() for w, g in zip(want, got, strict=True)])
    assert judge.points(Fixed(got)) == pytest.approx(100 * same.mean())
    assert judge.points(Fixed(want)) == 100
    assert judge.images == 11
    assert judge.step == (pytest.approx(100 / 11) if len(shape) == 1 else None)


def test_files_that_end_with_arg_max_are_compared_class_by_class():
    want = [np.array([[1, 2], [0, 300]])]
    got = [np.array([[1, 2], [7, 300]])]
    judge = agreement_judge(Fixed(want), lambda: [{}])
    assert judge.points(Fixed(got)) == 75


def test_outputs_without_classes_are_compared_by_their_direction():
    want, got = [np.array([[3.0], [4.0]], np.float32)], [np.array([[6.0], [-4.0]], np.float32)]
    judge = agreement_judge(Fixed(want), lambda: [{}])
    assert judge.name == "cosine similarity to FP32"
    assert judge.points(Fixed(got)) == pytest.approx(0)


def test_nothing_to_judge_on_is_an_error():
    with pytest.raises(DataError, match="no picture is left"):
        agreement_judge(Fixed([np.zeros((1, 2))]), lambda: [])


def test_a_metric_counts_in_points_and_must_be_a_number():
    session = Fixed([np.zeros((1, 2))])
    assert metric_judge(lambda one: {"mIoU": 0.875}, "mIoU", 8).points(session) == 87.5
    with pytest.raises(EngineError, match="mIoU"):
        metric_judge(lambda one: {"mIoU": float("nan")}, "mIoU", 8).points(session)
