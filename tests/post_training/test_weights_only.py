"""Files whose weights alone are stored in fewer bits."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.engines import open_session
from quantrim.errors import ConfigError, ModelError
from quantrim.post_training.weights_only import shrink_weights
from quantrim.recipes.example import write_example

#: Bits of a stored weight, and the relative error that rounding to them may make in a small network.
KINDS = {"int8": (8, 2e-2), "int16": (16, 1e-4), "fp16": (16, 2e-3)}


def answers(path, feed) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_take_fewer_bits_and_both_engines_answer_alike(kind, tmp_path):
    bits, allowed = KINDS[kind]
    model = write_example(tmp_path / "example").model
    result = shrink_weights(model, tmp_path / "small.onnx", kind=kind)
    stored = {t.data_type: 0 for t in onnx.load(result.output).graph.initializer}
    assert {"int8": onnx.TensorProto.INT8, "int16": onnx.TensorProto.INT16, "fp16": onnx.TensorProto.FLOAT16}[
        kind
    ] in stored
    assert result.size_mb[kind] < result.size_mb["fp32"] * (bits / 32 + 0.12)
    feed = np.random.default_rng(0).standard_normal((3, 3, 28, 28)).astype(np.float32)
    expected = answers(model, feed)
    for got in (
        answers(result.output, feed),
        open_session(result.output, "openvino").run({"image": feed})["scores"],
    ):
        assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < allowed
    assert set(result.judgements) >= {"openvino", "onnxruntime"}


def test_integers_are_the_nearest_codes_of_each_channel(residual_onnx, tmp_path):
    shrink_weights(residual_onnx, tmp_path / "small.onnx", kind="int16", engines=())
    model = onnx.load(tmp_path / "small.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    checked = 0
    for name, codes in tensors.items():
        if codes.dtype == np.int16:
            scales = tensors[name.removesuffix("_int16") + "_scale"]
            assert np.abs(codes).max(axis=tuple(range(1, codes.ndim))).min() in (32_767, 0)
            assert scales.size == codes.shape[0] or 1 in scales.shape
            checked += 1
    assert checked


def test_a_threshold_clips_the_largest_weights(residual_onnx, tmp_path):
    whole = shrink_weights(residual_onnx, tmp_path / "a.onnx", engines=())
    clipped = shrink_weights(residual_onnx, tmp_path / "b.onnx", threshold_rate=0.2, engines=())
    scales = [
        sum(
            float(numpy_helper.to_array(t).sum())
            for t in onnx.load(one.output).graph.initializer
            if "scale" in t.name
        )
        for one in (whole, clipped)
    ]
    assert scales[1] < 0.9 * scales[0]


@pytest.mark.parametrize(
    ("options", "field"),
    [({"kind": "int4"}, "kind"), ({"threshold_rate": 1.0}, "threshold_rate"), ({"skip": ["x*"]}, "skip")],
)
def test_illegal_options_are_named_and_nothing_is_written(residual_onnx, tmp_path, options, field):
    with pytest.raises(ConfigError) as caught:
        shrink_weights(residual_onnx, tmp_path / "small.onnx", engines=(), **options)
    assert caught.value.field == field
    assert not (tmp_path / "small.onnx").exists()


def test_a_weight_beyond_float16_is_refused(residual_onnx, tmp_path):
    model = onnx.load(residual_onnx)
    first = next(t for t in model.graph.initializer if len(t.dims) == 4)
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * np.float32(1e6), first.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(ModelError, match="65504"):
        shrink_weights(tmp_path / "large.onnx", tmp_path / "small.onnx", kind="fp16", engines=())


def test_the_verb_tells_sizes_and_what_engines_keep(residual_onnx, tmp_path):
    words = ["shrink", str(residual_onnx), "-o", str(tmp_path / "small.onnx"), "--engine", "onnxruntime"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "weights as int8" in done.output
    assert "onnxruntime:" in done.output
