"""Tasks are read from shapes where nobody told them, and files are faithful or not by the documented bars."""

import numpy as np
import pytest

from quantrim.errors import ConfigError, ModelError
from quantrim.judges import Judging, Jury, class_axis, read_as

GENERATOR = np.random.default_rng(0)


def softmax(shape, axis=-1):
    e = np.exp(3 * GENERATOR.standard_normal(shape))
    return (e / e.sum(axis=axis, keepdims=True)).astype(np.float32)


def normal(*shape):
    return GENERATOR.standard_normal(shape).astype(np.float32)


def judged(wanted, noise, judging=None, feed=(3, 32, 32), times=1):
    """Judgement of one output with normal noise of a share of its size."""
    jury = Jury(judging or Judging())
    for _ in range(times):
        inputs = {"x": np.zeros((len(wanted), *feed), np.float32)}
        got = wanted + noise * normal(*wanted.shape) * wanted.std()
        jury.hear(inputs, {"y": wanted}, {"y": got.astype(wanted.dtype)})
    return jury.judgement(True)


def unit(*shape):
    one = normal(*shape)
    return one / np.linalg.norm(one, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("answer", "task"),
    [
        (normal(4, 10), "classification"),
        (normal(4, 10, 1, 1), "classification"),
        (GENERATOR.integers(0, 5, (4,)), "classification"),
        (unit(4, 128), "values"),
        (normal(4, 1), "values"),
        (normal(4), "values"),
        (normal(4, 19, 32, 32), "segmentation"),
        (normal(4, 32, 32, 19), "segmentation"),
        (GENERATOR.integers(0, 5, (4, 32, 32)), "segmentation"),
        (normal(4, 3, 32, 32), "values"),
        (normal(4, 3, 64, 64), "values"),
        (normal(4, 255, 4, 4), "values"),
        (softmax((4, 24, 40)), "sequences"),
        (softmax((24, 4, 40)), "sequences"),
        (normal(4, 197, 768), "values"),
        (normal(4, 64, 6), "values"),
        (normal(4, 21, 6), "detection"),
    ],
)
def test_a_task_that_nobody_told_is_read_from_the_outputs(answer, task):
    reading = read_as(Judging(), {"y": answer}, (32, 32), 4)
    assert reading.task == task
    assert "no task given" in reading.how
    assert not reading.told


def test_a_task_that_was_told_is_taken():
    reading = read_as(Judging(task="embeddings", source="as deploy.yaml says"), {"y": normal(4, 10)}, None, 4)
    assert (reading.task, reading.how) == ("values", "judged as values, as deploy.yaml says")


@pytest.mark.parametrize(
    ("shape", "axis", "canvas"),
    [((2, 9), 1, None), ((2, 7, 9), 2, None), ((2, 9, 8, 8), 1, (8, 8)), ((2, 8, 8, 9), 3, (8, 8)),
     ((2, 9, 1, 1), 1, None), ((2, 1, 9), 2, None)],
)  # fmt: skip
def test_the_class_axis_is_found_whatever_the_rank(shape, axis, canvas):
    assert class_axis(normal(*shape), canvas) == axis


def test_the_axis_of_a_soft_max_is_the_class_axis():
    assert class_axis(softmax((2, 7, 9), axis=1)) == 1


@pytest.mark.parametrize(
    "answer", [normal(32, 10), softmax((32, 24, 40)), normal(8, 19, 32, 32), unit(32, 128)]
)
def test_little_noise_is_faithful_and_much_is_not(answer):
    good, bad = judged(answer, 0.01), judged(answer, 3.0)
    assert good.faithful
    assert not good.reasons
    assert not bad.faithful
    assert bad.reasons
    assert judged(answer, 3.0, Judging(accept="any")).faithful


def test_levels_move_the_bar():
    answer = normal(64, 12) + 3 * np.eye(12, dtype=np.float32)[np.arange(64) % 12]
    found = {level: judged(answer, 0.28, Judging(accept=level)).faithful for level in ("strict", "loose")}
    assert found == {"strict": False, "loose": True}


def test_a_few_samples_do_not_condemn_a_file_by_chance():
    """Two of eight samples of another class are no evidence for less than nine in ten."""
    wanted = np.eye(8, dtype=np.float32) + 0.01
    got = wanted.copy()
    got[:2] = got[[1, 0]]
    jury = Jury(Judging(task="classification"))
    jury.hear({"x": wanted}, {"y": wanted}, {"y": got})
    assert jury.judgement().faithful


def test_every_output_is_judged_and_the_least_comes_first():
    main, side = normal(8, 4, 8, 8), normal(8, 6)
    jury = Jury(Judging())
    jury.hear({"x": np.zeros((8, 3, 8, 8))}, {"main": main, "side": side}, {"main": main, "side": side[::-1]})
    found = jury.judgement()
    assert [one.output for one in found.outputs] == ["side", "main"]
    assert "'side'" in " ".join(found.reasons)
    assert "'side'" in found.summary


def test_a_tenth_of_lost_samples_is_enough_to_say_no():
    wanted = normal(40, 64, 4, 4)
    got = wanted + 0.01 * normal(*wanted.shape)
    got[:6] = 5 * normal(6, 64, 4, 4)
    jury = Jury(Judging())
    jury.hear({"x": wanted}, {"y": wanted}, {"y": got})
    found = jury.judgement()
    assert found.outputs[0].sqnr_db > 35
    assert "one sample in ten" in found.reasons[0]


def test_nan_is_never_faithful_and_in_the_float_model_an_error():
    wanted, got = normal(4, 10), normal(4, 10)
    got[0, 0] = np.nan
    jury = Jury(Judging(accept="any"))
    jury.hear({"x": wanted}, {"y": wanted}, {"y": got})
    assert "NaN" in jury.judgement().reasons[0]
    with pytest.raises(ModelError, match="NaN"):
        jury.hear({"x": wanted}, {"y": got}, {"y": wanted})


def test_outputs_of_other_shapes_are_compared_as_far_as_they_can_be():
    jury = Jury(Judging())
    wanted, got = normal(7, 4), normal(5, 4)  # boxes behind suppression, of two images
    jury.hear({"x": np.zeros((2, 3, 8, 8))}, {"boxes": wanted}, {"boxes": got})
    assert jury.judgement().outputs[0].sqnr_db == 0


def test_words_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'detection'"):
        Judging(task="detektion")
    with pytest.raises(ConfigError, match="accept"):
        Judging(accept="perfect")
    with pytest.raises(ConfigError, match="decoder"):
        Judging(task="values", decoder={"type": "yolox", "num_classes": 3})
    assert Judging(decoder={"type": "yolox", "num_classes": 3}).task == "detection"


def test_the_words_of_a_faithful_file_say_on_what_it_was_judged():
    assert "on 32 samples kept from calibration" in judged(normal(32, 10), 0.01).summary
