"""train → evaluate → export → ptq → evaluate on the engine → predict, as a user types them."""

import json
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.vision.data.optic_disc import OpticDiscImages

CONFIG = str(Path(__file__).parents[2] / "configs/quick_start/bisenet_synthetic_disc_256x256.yml")
SMALL = [part for key in ("train", "val") for part in (
    "--set", f"{key}_dataset.size=64", "--set", f"{key}_dataset.count=8")]  # fmt: skip


def run(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json", "-"])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run("train", "-c", CONFIG, *SMALL, "--iters", 2, "--batch-size", 4, "--save-dir", folder, "--device", "cpu")
    return folder


def test_training_leaves_weights_checkpoint_and_record(trained):
    assert (trained / "best_model" / "model.pth").is_file()
    assert (trained / "iter_2" / "state.pth").is_file()
    assert json.loads((trained / "run.json").read_text())["result"]["iterations"] == 2


def test_weights_and_the_exported_file_have_the_same_metrics(trained, tmp_path):
    weights = trained / "best_model" / "model.pth"
    run("export", "-c", CONFIG, *SMALL, "--weights", weights, "-o", tmp_path / "m.onnx")
    assert "transforms" in (tmp_path / "deploy.yaml").read_text()
    torch_metrics = run("evaluate", "-c", CONFIG, *SMALL, "--weights", weights)["metrics"]
    for engine in ("openvino", "onnxruntime"):
        metrics = run("evaluate", "-c", CONFIG, *SMALL, "--model", tmp_path / "m.onnx", "--engine", engine)
        assert metrics["metrics"]["mIoU"] == pytest.approx(torch_metrics["mIoU"], abs=0.002)


def test_an_argmax_file_gives_classes(trained, tmp_path):
    weights = trained / "best_model" / "model.pth"
    run(
        "export", "-c", CONFIG, *SMALL, "--weights", weights, "-o", tmp_path / "m.onnx", "--output-op", "argmax"
    )
    assert run("evaluate", "-c", CONFIG, *SMALL, "--model", tmp_path / "m.onnx")["metrics"]["images"] == 8


def test_predictions_are_written_as_pictures(trained, tmp_path):
    picture, _ = OpticDiscImages(1, 64)[0]
    cv2.imwrite(str(tmp_path / "eye.png"), picture[:, :, ::-1])
    weights = trained / "best_model" / "model.pth"
    run(
        "predict",
        "-c",
        CONFIG,
        "--weights",
        weights,
        "--images",
        tmp_path / "eye.png",
        "--save-dir",
        tmp_path / "out",
    )
    for kind in ("added_prediction", "pseudo_color_prediction"):
        assert cv2.imread(str(tmp_path / "out" / kind / "eye.png")).shape == (64, 64, 3)


def test_neither_or_both_of_weights_and_model_is_an_error():
    result = CliRunner().invoke(app, ["evaluate", "-c", CONFIG])
    assert "either --weights or --model" in str(result.exception)
