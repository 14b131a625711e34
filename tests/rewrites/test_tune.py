"""The tuner: honest races, a memory that makes the outcome certain, and proofs on every use."""

import json

import numpy as np
import pytest

from quantrim.errors import DataError
from quantrim.graph.session import save_model
from quantrim.rewrites import ARG_MAX, Memory, prove, tune
from quantrim.rewrites import tuner as tuning
from quantrim.rewrites.duel import Duel, duel, judged
from tests.rewrites.graphs import feeds_of, graph, node, ops

SHAPE = (1, 3, 12, 12)
WIN, LOSS = Duel(0.5, 0.4, 0.6, 2.0, 1.0), Duel(1.5, 1.4, 1.6, 2.0, 3.0)


@pytest.fixture
def model():
    generator = np.random.default_rng(0)
    constants = {"w": generator.standard_normal((8, 3, 3, 3)).astype(np.float32),
                 "s": np.array([1, 8, 40, 40], np.int64)}  # fmt: skip
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Resize", "b - - s", "y", mode="linear", coordinate_transformation_mode="half_pixel"),
    ]
    return graph(nodes, SHAPE, constants)


@pytest.fixture
def build(tmp_path):
    count = iter(range(1000))

    def write(rewritten):
        path = tmp_path / f"file_{next(count)}.onnx"
        save_model(rewritten, path)
        return path

    return write


@pytest.fixture(autouse=True)
def every_site(monkeypatch):
    """Sites of any share of the time are tried, however small the nets of these tests."""
    monkeypatch.setattr(tuning, "_LEAST_SHARE", 0.0)


class Always:
    """A clock that gives one answer to every race."""

    def __init__(self, answer):
        self.answer, self.races = answer, 0

    def __call__(self, *sessions, **settings):
        self.races += 1
        return self.answer


def test_a_clear_difference_is_seen_through_noise():
    generator = np.random.default_rng(0)
    noise = generator.lognormal(0, 0.1, (40, 1))
    faster = judged(np.array([[10.0, 8.0]]) * noise)
    slower = judged(np.array([[8.0, 10.0]]) * noise)
    assert faster.wins
    assert not faster.loses
    assert slower.loses
    assert faster.ratio == pytest.approx(0.8)


def test_noise_alone_neither_wins_nor_loses():
    pairs = np.random.default_rng(0).lognormal(2, 0.3, (60, 2))
    answer = judged(pairs)
    assert not answer.wins
    assert not answer.loses


def test_a_race_on_an_engine_ends_in_its_time(model, build):
    from quantrim.engines import open_session

    one, two = (open_session(build(model), "onnxruntime", threads=1) for _ in range(2))
    answer = duel(one, two, feeds_of(SHAPE)[0], seconds=0.2)
    assert answer.low <= answer.ratio <= answer.high


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_what_wins_is_kept_and_proven(model, build, engine, monkeypatch):
    clock = Always(WIN)
    monkeypatch.setattr(tuning, "duel", clock)
    tuned = tune(model, feeds_of(SHAPE), build, [engine])
    assert "MatMul" in ops(tuned.model)
    assert [trial.rewrite for trial in tuned.kept] == ["resize as matmuls"]
    prove(model, tuned.model, feeds_of(SHAPE))


def test_what_loses_on_one_engine_is_forgotten(model, build, monkeypatch):
    answers = iter([WIN, LOSS] * 20)
    monkeypatch.setattr(tuning, "duel", lambda *sessions, **settings: next(answers))
    tuned = tune(model, feeds_of(SHAPE), build, ["openvino", "onnxruntime"])
    assert tuned.model is model
    assert not tuned.kept


def test_with_a_full_memory_nothing_is_raced_and_the_outcome_is_the_same(model, build, tmp_path, monkeypatch):
    clock = Always(WIN)
    monkeypatch.setattr(tuning, "duel", clock)
    first = tune(model, feeds_of(SHAPE), build, ["onnxruntime"], memory=Memory(tmp_path / "memory.json"))
    assert clock.races > 0
    again = Always(LOSS)
    monkeypatch.setattr(tuning, "duel", again)
    memory = Memory(tmp_path / "memory.json")
    second = tune(model, feeds_of(SHAPE), build, ["onnxruntime"], memory=memory, seconds=0)
    assert again.races == 0
    assert second.complete
    assert (ops(second.model), second.sites) == (ops(first.model), first.sites)


def test_answers_for_one_kind_of_file_say_nothing_of_another(model, build, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "duel", Always(WIN))
    memory = Memory(tmp_path / "memory.json")
    tune(model, feeds_of(SHAPE), build, ["onnxruntime"], kind="int8", memory=memory)
    clock = Always(LOSS)
    monkeypatch.setattr(tuning, "duel", clock)
    tune(model, feeds_of(SHAPE), build, ["onnxruntime"], kind="float", memory=memory)
    assert clock.races > 0


def test_when_the_time_is_up_it_says_so(model, build):
    tuned = tune(model, feeds_of(SHAPE), build, ["onnxruntime"], seconds=0)
    assert not tuned.complete
    assert tuned.model is model


def test_a_rewrite_that_computes_something_else_is_refused(model, build, monkeypatch):
    def wrong(original, shapes, sites):
        copy = original.clone()
        weight = copy.graph.initializers["w"]
        weight.const_value = tuning.ir.tensor(weight.const_value.numpy() * 1.01, name="w")
        return copy

    monkeypatch.setattr(tuning, "rewritten", wrong)
    tuned = tune(model, feeds_of(SHAPE), build, ["onnxruntime"])
    assert tuned.model is model
    assert "changed output" in tuned.trials[0].reason


def test_a_real_clock_decides_on_a_real_engine(model, build):
    tuned = tune(model, feeds_of(SHAPE), build, ["openvino"], seconds=5)
    prove(model, tuned.model, feeds_of(SHAPE))
    assert {trial.kept for trial in tuned.trials} <= {True, False}
    assert ARG_MAX.name not in {trial.rewrite for trial in tuned.trials}


def test_two_searches_share_one_memory(tmp_path):
    path = tmp_path / "memory.json"
    one, two = Memory(path), Memory(path)
    one.learn("engine", "a", WIN)
    two.learn("engine", "b", LOSS)
    third = Memory(path)
    assert third.recall("engine", "a") == WIN
    assert third.recall("engine", "b") == LOSS
    assert third.recall("another engine", "a") is None


def test_a_damaged_memory_says_which_file_to_delete(tmp_path):
    path = tmp_path / "memory.json"
    path.write_text("{")
    with pytest.raises(DataError, match="not a file of tuning answers"):
        Memory(path)
    path.write_text(json.dumps({"version": 0, "answers": {"x": {}}}))
    assert Memory(path).recall("x", "y") is None
