"""Finished files, float and quantized, made faster in place."""

import numpy as np
import onnx
import pytest

from quantrim.engines import open_session
from quantrim.graph import normalize
from quantrim.graph.session import save_model
from quantrim.post_training import ptq
from quantrim.rewrites import contest, files, tune_file, tuner
from quantrim.rewrites.duel import Duel
from tests.rewrites.graphs import graph, node

WIN, LOSS = Duel(0.5, 0.4, 0.6, 2.0, 1.0), Duel(1.5, 1.4, 1.6, 2.0, 3.0)
SHAPE = (1, 3, 8, 8)


@pytest.fixture
def float_file(tmp_path):
    constants = {"w": np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32),
                 "s": np.array([1, 6, 24, 24], np.int64)}  # fmt: skip
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("Resize", "a - - s", "u", mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Softmax", "u", "p", axis=1),
        node("ArgMax", "p", "y", axis=1, keepdims=0),
    ]
    save_model(normalize(graph(nodes, SHAPE, constants, kind=onnx.TensorProto.INT64)), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


@pytest.fixture(autouse=True)
def every_site(monkeypatch):
    """Sites of any share of the time are tried, however small the nets of these tests."""
    monkeypatch.setattr(tuner, "_LEAST_SHARE", 0.0)


def operators(path):
    return [one.op_type for one in onnx.load(path).graph.node]


def classes(path):
    image = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    return open_session(path, "onnxruntime").run({"x": image})["y"]


def always(answer):
    return lambda *sessions, **settings: answer


def test_a_float_file_is_rewritten_and_asks_for_the_precision_that_won(float_file, monkeypatch):
    expected = classes(float_file)
    monkeypatch.setattr(tuner, "duel", always(WIN))
    monkeypatch.setattr(contest, "duel", lambda one, two, *rest, **more: WIN)
    monkeypatch.setattr(tuner._Search, "_pays", lambda search: True)
    monkeypatch.setattr(files, "engines_have_bf16", lambda engines: True)
    done = tune_file(float_file, ["openvino"])
    assert "Resize" not in operators(float_file)
    assert "Softmax" not in operators(float_file)
    assert done.winner == "BF16"
    assert open_session(float_file, "openvino").precision == "bf16"
    np.testing.assert_array_equal(classes(float_file), expected)


def test_the_tail_of_a_quantized_file_is_rewritten_and_its_codes_stay(float_file, tmp_path, monkeypatch):
    images = np.random.default_rng(0).standard_normal((4, *SHAPE[1:])).astype(np.float32)
    ptq(float_file, images, tmp_path / "q.onnx", target="openvino", engines=())
    expected = classes(tmp_path / "q.onnx")
    monkeypatch.setattr(tuner, "duel", always(WIN))
    monkeypatch.setattr(tuner._Search, "_pays", lambda search: True)
    monkeypatch.setattr(files, "engines_have_bf16", lambda engines: False)
    done = tune_file(tmp_path / "q.onnx", ["onnxruntime"], output=tmp_path / "fast.onnx")
    assert "MatMul" in operators(tmp_path / "fast.onnx")
    assert done.winner == "INT8"
    np.testing.assert_array_equal(classes(tmp_path / "fast.onnx"), expected)
    stored = [
        {
            t.name: onnx.numpy_helper.to_array(t)
            for t in onnx.load(path).graph.initializer
            if "_quantized" in t.name
        }
        for path in (tmp_path / "q.onnx", tmp_path / "fast.onnx")
    ]
    assert stored[0].keys() == stored[1].keys()
    assert all(np.array_equal(stored[0][name], stored[1][name]) for name in stored[0])


def test_a_file_that_nothing_helps_is_written_as_it_was(float_file, tmp_path, monkeypatch):
    monkeypatch.setattr(tuner, "duel", always(LOSS))
    monkeypatch.setattr(contest, "duel", always(LOSS))
    done = tune_file(float_file, ["onnxruntime"], output=tmp_path / "out.onnx")
    assert not done.rewrites.kept
    assert done.winner == "FP32"
    assert operators(tmp_path / "out.onnx") == operators(float_file)
