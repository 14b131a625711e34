"""The model and images that a newcomer tries the verbs on."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import DataError
from quantrim.images import read_image
from quantrim.post_training import ptq
from quantrim.recipes.example import write_example


def accuracy(path, example) -> float:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    lines = [line.split() for line in example.labels.read_text().splitlines()]
    images = np.stack([read_image(example.labels.parent / name) for name, _ in lines]).astype(np.float32)
    feed = (images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5
    found = session.run(None, {session.get_inputs()[0].name: feed})[0].argmax(1)
    return float((found == [int(label) for _, label in lines]).mean())


def test_the_example_is_a_trained_model_that_stays_right_in_int8(tmp_path):
    example = write_example(tmp_path / "example")
    assert example.count == len(list(example.images.glob("*.png"))) == 200
    fp32 = accuracy(example.model, example)
    assert fp32 >= 0.9
    lines = (read_image(path) for path in sorted(example.images.glob("*.png"))[:100])
    feeds = (((image.astype(np.float32).transpose(2, 0, 1) / 255) - 0.5) / 0.5 for image in lines)
    ptq(example.model, feeds, tmp_path / "int8.onnx", engines=())
    assert accuracy(tmp_path / "int8.onnx", example) >= fp32 - 0.02


def test_the_verb_writes_it_again_and_keeps_a_model_of_the_users_own(tmp_path):
    words = ["example", "--save-dir", str(tmp_path / "example")]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, words).exit_code == 0
    (tmp_path / "example" / "model.onnx").write_bytes(b"mine")
    with pytest.raises(DataError, match="another model"):
        write_example(tmp_path / "example")
    assert (tmp_path / "example" / "model.onnx").read_bytes() == b"mine"
