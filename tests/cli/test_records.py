"""Every verb leaves a record beside what it made, and options that change nothing are refused."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import ConfigError
from quantrim.files import read_json
from quantrim.vision.shipped import shipped_file

CONFIG = str(shipped_file("configs", "quick_start/demo.yml"))


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_ptq_and_shrink_leave_their_records(residual_onnx, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    done = run("ptq", residual_onnx, "--data", tmp_path / "images.npy", "-o", tmp_path / "int8.onnx",
               "--engine", "onnxruntime", "--samples", 8)  # fmt: skip
    record = read_json(next(tmp_path.glob("*.ptq.json")))
    assert record["command"] == "ptq"
    assert record["machine"]["versions"]["onnxruntime"]
    assert done.exit_code in (0, 3)
    run("shrink", residual_onnx, "-o", tmp_path / "small.onnx")
    assert read_json(tmp_path / "small.shrink.json")["command"] == "shrink"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--binary", "b", "--model", "m.onnx", "--limit", "3"), "--limit is not for --binary"),
        (("--binary", "b", "--model", "m.onnx", "--seed", "0"), "--seed is not for --binary"),
        (("--binary", "b", "--model", "m.onnx", "--scales", "1.0"), "--scales is not for --binary"),
        (("-c", CONFIG, "--weights", "w", "--batch-num", "3"), "--batch-num is for --binary"),
        (("-c", CONFIG, "--weights", "w", "--with-accuracy-layer"), "--with-accuracy-layer is for --binary"),
        (("-c", CONFIG, "--weights", "w", "--seed", "1"), "--seed draws the images of --limit"),
    ],
)
def test_evaluate_refuses_what_would_change_nothing(words, message):
    done = run("evaluate", *words)
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
