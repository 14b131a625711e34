"""A file that is not faithful is named so, explained, and mended where little is enough."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import EngineError
from quantrim.post_training import ptq
from quantrim.post_training.deliver import unfaithful_path

IMAGES = np.random.default_rng(0).standard_normal((40, 3, 16, 16)).astype(np.float32)


def net(path, loud: float = 1.0):
    """Three convolutions; a channel between the last two is ``loud`` times as large, and all but ignored."""
    generator = np.random.default_rng(1)
    shapes = {"a": (8, 3, 3, 3), "b": (6, 8, 3, 3), "k": (10, 6, 1, 1)}
    weights = {name: generator.normal(0, np.prod(shape[1:]) ** -0.5, shape) for name, shape in shapes.items()}
    weights["b"][0] *= loud
    weights["k"][:, 0] /= 1e3 * loud
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c1"], "one", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "b"], ["c2"], "two", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "k"], ["y"], "three"),
    ]
    shape = ["N", 10, 16, 16]
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["N", 3, 16, 16]), ("y", shape))]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_that_is_not_faithful_has_a_name_that_nobody_deploys(tmp_path):
    (tmp_path / "q.onnx").write_bytes(b"an older file")
    result = ptq(
        net(tmp_path / "m.onnx", 1e6), IMAGES, tmp_path / "q.onnx", engines=["onnxruntime"], mend=False
    )
    assert not result.faithful
    assert result.output == str(tmp_path / "q.unfaithful.onnx")
    assert (tmp_path / "q.unfaithful.ranges.json").is_file()
    assert (tmp_path / "q.onnx").read_bytes() == b"an older file"
    assert result.engines[0].headline.startswith("NOT faithful on ONNX Runtime: ")
    assert result.worst
    assert result.advice
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["faithful"] is False


def test_it_is_mended_where_little_is_enough_and_says_so(tmp_path):
    unfaithful_path(tmp_path / "q.onnx").write_bytes(b"of an earlier run")
    result = ptq(net(tmp_path / "m.onnx", 1e6), IMAGES, tmp_path / "q.onnx", engines=["onnxruntime"])
    assert result.faithful
    assert result.notes[0].startswith("Mended: ")
    assert result.output == str(tmp_path / "q.onnx")
    assert not (tmp_path / "q.unfaithful.onnx").exists()


def test_a_healthy_file_needs_no_mending_and_is_judged_on_other_samples(tmp_path):
    result = ptq(net(tmp_path / "m.onnx"), IMAGES, tmp_path / "q.onnx", engines=["onnxruntime"], samples=24)
    judgement = result.engines[0].judgement
    assert (result.faithful, result.notes, result.samples) == (True, (), 24)
    assert (judgement.samples, judgement.held_out) == (16, True)
    whole = ptq(net(tmp_path / "m.onnx"), IMAGES, tmp_path / "q.onnx", engines=["onnxruntime"])
    assert whole.engines[0].judgement.held_out is False
    assert "calibration" in whole.engines[0].headline


def test_other_data_may_judge(tmp_path):
    result = ptq(net(tmp_path / "m.onnx"), IMAGES[:20], tmp_path / "q.onnx", engines=["onnxruntime"],
                 judge_data=[IMAGES[20:]], judged=12)  # fmt: skip
    judgement = result.engines[0].judgement
    assert (judgement.samples, judgement.held_out) == (12, True)


def test_a_level_moves_the_bar(tmp_path):
    options = {"engines": ["onnxruntime"], "mend": False}
    found = {
        level: ptq(net(tmp_path / "m.onnx", 1e6), IMAGES, tmp_path / "q.onnx", accept=level, **options).faithful
        for level in ("faithful", "any")
    }
    assert found == {"faithful": False, "any": True}


@pytest.mark.parametrize("error", [EngineError("no"), KeyboardInterrupt()])
def test_nothing_stands_at_the_output_where_the_verdict_did_not_end(tmp_path, monkeypatch, error):
    def ask(*_, **__):
        raise error

    monkeypatch.setattr("quantrim.post_training.hearing.ask", ask)
    net(tmp_path / "m.onnx")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(type(error)):
        ptq(tmp_path / "m.onnx", IMAGES[:4], tmp_path / "q.onnx", engines=["onnxruntime"], mend=False)
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_ends_with_3_and_says_what_to_try(tmp_path):
    np.savez(tmp_path / "c.npz", x=IMAGES)
    words = ["ptq", str(net(tmp_path / "m.onnx", 1e6)), "--data", str(tmp_path / "c.npz")]
    words += ["-o", str(tmp_path / "q.onnx"), "--engine", "onnxruntime"]
    answer = CliRunner().invoke(app, [*words, "--no-mend"])
    assert answer.exit_code == 3
    assert answer.output.startswith("NOT faithful on ONNX Runtime")
    assert "  loses most: " in answer.output
    assert "  try: --" in answer.output
    assert not (tmp_path / "q.onnx").exists()
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith("Faithful on ONNX Runtime")
