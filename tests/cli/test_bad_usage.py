"""Values of options that would do harm or nothing: refused in one line, and nothing is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from quantrim.cli import app, with_option
from quantrim.errors import QuantrimError

SEGMENT = """
batch_size: 2
iters: 1
train_dataset: &data
  type: Dataset
  dataset_root: {root}
  num_classes: 2
  mode: train
  transforms: [{{type: Normalize}}]
val_dataset: {{<<: *data}}
learning_rate: {{value: 0.01}}
loss: {{types: [{{type: CrossEntropyLoss}}], coef: [1, 0.4]}}
model: {{type: FastSCNN}}
"""


def fails(*words: object) -> str:
    """The one line that a command fails with."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(done.exception, QuantrimError), (done.output, done.exception)
    told = with_option(done.exception)
    assert "\n" not in told
    return told


@pytest.fixture
def data(tmp_path, images) -> Path:
    np.save(tmp_path / "images.npy", images[:4])
    return tmp_path / "images.npy"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weight-algo", "absmax"], "did you mean 'abs_max'"),
        (["--override", "image=kll"], "--override image=kll: unknown algorithm; did you mean 'kl'"),
        (["--override", "nothing*=kl"], "no quantized tensor is named so"),
        (["--override", "x"], "not of the form"),
        (["--hist-percent", "2"], "above 0 and up to 1"),
        (["--input-shape", "1,3,9,9"], "has shape ?x3x32x32, not 1x3x9x9"),
        (["--skip", "nothing*"], "matches no node"),
        (["--refine", "bia"], "did you mean 'bias'"),
        (["--samples", "0"], "--samples is 0; it must be at least 1"),
        (["--std", "0,1,1"], "above 0"),
    ],
)
def test_options_of_ptq_that_make_no_sense_are_refused(residual_onnx, data, tmp_path, words, message):
    told = fails(
        "ptq", residual_onnx, "--data", data, "-o", tmp_path / "q.onnx", "--engine", "onnxruntime", *words
    )
    assert message in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npy"]


def test_a_file_is_not_compared_with_another_model(residual_onnx, tmp_path):
    model = onnx.load(residual_onnx)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    assert "not the float model of" in fails("inspect", residual_onnx, "--against", other)


def segmentation(root: Path, *masks: np.ndarray) -> Path:
    for index, mask in enumerate(masks):
        assert cv2.imwrite(str(root / f"i{index}.png"), np.full((32, 32, 3), 90 * index, np.uint8))
        Image.fromarray(mask).save(root / f"m{index}.png")
    (root / "train_list.txt").write_text("".join(f"i{i}.png m{i}.png\n" for i in range(len(masks))))
    (root / "c.yml").write_text(SEGMENT.format(root=root))
    return root / "c.yml"


def test_a_label_that_is_no_class_is_told_with_its_file(tmp_path):
    good = np.zeros((32, 32), np.uint8)
    bad = good.copy()
    bad[:2, :2] = 255  # doesn't count
    bad[3, 3] = 7
    config = segmentation(tmp_path, good, bad)
    words = ["train", "-c", config, "--save-dir", tmp_path / "run", "--device", "cpu"]
    message = (
        f"{tmp_path / 'm1.png'}: label 7 is no class of 0 to 1 and not ignore_index 255. "
        "Correct the label, or num_classes."
    )
    assert fails(*words) == message
    command = [sys.executable, "-m", "quantrim", *map(str, words), "--num-workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, f"quantrim: error: {message}")
    assert not list((tmp_path / "run").rglob("*.pth"))


def test_a_bad_line_of_a_list_is_told_with_its_number(tmp_path):
    config = segmentation(tmp_path, np.zeros((32, 32), np.uint8))
    for content, words in (
        (b"i0.png m0.png\n\ni0.png\n", "line 3 has 1 columns"),
        (b"\xff\xfe", "no text file"),
    ):
        (tmp_path / "train_list.txt").write_bytes(content)
        assert words in fails("train", "-c", config, "--save-dir", tmp_path / "run", "--device", "cpu")


def test_a_step_longer_than_the_window_is_refused(tmp_path):
    config = segmentation(tmp_path, np.zeros((32, 32), np.uint8))
    words = ["evaluate", "-c", config, "--model", "m.onnx", "--crop-size", "16,16", "--stride", "32,16"]
    assert "leaving pixels unseen" in fails(*words)


def test_a_full_disk_leaves_the_old_file_whole(residual_onnx, data, tmp_path, monkeypatch):
    output = tmp_path / "q.onnx"
    output.write_bytes(b"old")

    def full(path: Path, content: bytes) -> int:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    words = ["ptq", residual_onnx, "--data", data, "-o", output, "--engine", "onnxruntime"]
    assert "No space left on device" in fails(*words)
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npy", "q.onnx"]


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path):
    config = segmentation(tmp_path, *[np.zeros((32, 32), np.uint8)] * 2)
    words = ["train", "-c", config, "--iters", 100000, "--save-interval", 2, "--log-iters", 100000,
             "--save-dir", tmp_path / "run", "--device", "cpu", "--no-do-eval"]  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, "-m", "quantrim", *map(str, words)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest may ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "iter_4" / "state.pth").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert (run.returncode, told.strip().splitlines()[-1]) == (130, "quantrim: interrupted")
    assert "Traceback" not in told
    assert not [path for path in (tmp_path / "run").rglob(".*")]


def test_the_contract_of_bench_and_inspect_in_json(residual_onnx, tmp_path):
    words = ["inspect", residual_onnx, "--engine", "onnxruntime", "--json", tmp_path / "i.json"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    assert {"engine", "int8_mac_share", "fallbacks"} <= json.loads((tmp_path / "i.json").read_text())[
        "verdict"
    ].keys()
