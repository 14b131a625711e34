"""``quantrim compress``, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import QuantrimError
from quantrim.graph.from_torch import export_onnx
from quantrim.recipes.loading import load
from quantrim.recipes.runs import export
from quantrim.vision.config import load_config

CONFIG = """
_base_: {base}
train_dataset: {{type: SyntheticOpticDisc, count: 8, size: 64, mode: train, transforms: [{{type: Normalize}}]}}
val_dataset: {{type: SyntheticOpticDisc, count: 4, size: 64, mode: val, transforms: [{{type: Normalize}}]}}
model: {{type: FastSCNN}}
loss: {{types: [{{type: CrossEntropyLoss}}], coef: [1, 0.4]}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yml"
    path.write_text(CONFIG.format(base=Path(__file__).parents[2] / "configs" / "quick_start" / "demo.yml"))
    return path


@pytest.fixture(scope="module")
def weights(config, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(load(load_config(config), None).model.state_dict(), path)
    return path


def compress(*words: object) -> dict:
    done = CliRunner().invoke(app, ["compress", *map(str, words), "--json", "-"])
    assert done.exit_code == 0, done.output + str(done.exception)
    return json.loads(done.stdout)


def test_weights_become_the_fastest_file_with_its_preprocessing(config, weights, tmp_path):
    value = compress(weights, "--data", config, "-o", tmp_path / "best.onnx", "--max-drop", 50, "--samples", 4)
    assert value["metric"]["name"] == "mIoU"
    assert value["metric"]["images"] == 4
    deploy = yaml.safe_load((tmp_path / "deploy.yaml").read_text())["Deploy"]
    assert deploy["model"] == "best.onnx"
    judged = CliRunner().invoke(
        app, ["evaluate", "-c", str(config), "--model", str(tmp_path / "best.onnx"), "--json", "-"]
    )
    assert 100 * json.loads(judged.stdout)["metrics"]["mIoU"] == pytest.approx(value["metric"]["chosen"])


def test_a_file_is_judged_by_pictures_without_labels_and_has_a_report(residual_onnx, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    words = ["--data", tmp_path / "images.npy", "--max-drop", 20, "--samples", 8, "--images", 16]
    output = tmp_path / "best.onnx"
    value = compress(residual_onnx, *words, "-o", output, "--engine", "onnxruntime")
    assert value["metric"]["name"] == "same class as FP32"
    assert value["metric"]["images"] == 16
    assert value["engine"] == "onnxruntime"
    (tmp_path / "c.json").write_text(json.dumps(value))
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "c.json"), "-o", str(page)]).exit_code == 0
    assert "The race" in page.read_text()


@pytest.mark.slow
def test_pruned_models_race_with_the_others(config, weights, tmp_path):
    value = compress(
        weights, "--data", config, "-o", tmp_path / "best.onnx", "--max-drop", 100, "--samples", 4,
        "--iters", 2, "--pruning-ratio", 0.1, "--save-dir", tmp_path / "runs",
    )  # fmt: skip
    names = [one["name"] for one in value["candidates"]]
    assert "pruned by 0.1" in names
    assert any(name.startswith("pruned by 0.1, INT8") for name in names)
    assert (tmp_path / "runs" / "pruned_0.1" / "plan.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iters", 5], "has no labels to train on"),
        (["--engine", "openvin"], "did you mean 'openvino'"),
        (["--samples", 4, "--max-drop", 0.5, "-o", "best.txt"], "best.txt"),
    ],
)
def test_options_that_make_no_sense_are_refused(residual_onnx, images, tmp_path, words, message):
    np.save(tmp_path / "images.npy", images)
    given = [residual_onnx, "--data", tmp_path / "images.npy", "-o", tmp_path / "best.onnx", *words]
    done = CliRunner().invoke(app, ["compress", *map(str, given)])
    assert isinstance(done.exception, QuantrimError), done.output
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npy"]


def test_an_onnx_file_cannot_be_trained(config, tmp_path):
    export(load(load_config(config), None), tmp_path / "m.onnx")
    words = ["compress", tmp_path / "m.onnx", "--data", config, "-o", tmp_path / "best.onnx", "--iters", 5]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "such a file can't be trained" in str(done.exception)
    assert not (tmp_path / "best.onnx").exists()


def test_the_report_shows_predictions_of_a_folder_and_of_a_validation_set(config, weights, tmp_path):
    loaded = load(load_config(config), weights)
    export(loaded, tmp_path / "m.onnx")
    done = CliRunner().invoke(app, [str(word) for word in (
        "ptq", tmp_path / "m.onnx", "--data", config, "-o", tmp_path / "q.onnx", "--samples", 4,
        "--engine", "openvino", "--json", tmp_path / "ptq.json")])  # fmt: skip
    assert done.exit_code == 0, done.output
    (tmp_path / "photos").mkdir()
    picture, _ = loaded.data.source[0]
    Image.fromarray(picture).save(tmp_path / "photos" / "eye.png")
    for images, words in ((config, "validation picture 3: INT8"), (tmp_path / "photos", "eye.png: INT8")):
        page = tmp_path / "page.html"
        arguments = ["report", tmp_path / "ptq.json", "-o", page, "--against", tmp_path / "m.onnx"]
        done = CliRunner().invoke(app, [str(word) for word in (*arguments, "--images", images)])
        assert done.exit_code == 0, done.output + str(done.exception)
        assert words in page.read_text()
    alone = CliRunner().invoke(app, [str(word) for word in arguments])
    assert "go together" in str(alone.exception)


def test_a_deploy_yaml_of_another_model_stays_and_options_of_images_are_refused(config, weights, tmp_path):
    (tmp_path / "deploy.yaml").write_text("Deploy: {model: other.onnx, transforms: []}")
    value = compress(weights, "--data", config, "-o", tmp_path / "best.onnx", "--max-drop", 100, "--samples", 4)
    assert "other.onnx" in (tmp_path / "deploy.yaml").read_text()
    assert any("another model's" in note for note in value["notes"])
    for words in (["--mean", "0.5"], ["--input-shape", "1,3,7,7"], ["--learning-rate", "0.1"]):
        given = [weights, "--data", config, "-o", tmp_path / "again.onnx", *words]
        done = CliRunner().invoke(app, ["compress", *map(str, given)])
        assert isinstance(done.exception, QuantrimError), done.output
    assert not (tmp_path / "again.onnx").exists()


def test_a_model_of_other_classes_than_the_data_is_one_clear_error(config, tmp_path):
    net = torch.nn.Conv2d(3, 5, 1)
    export_onnx(net, torch.randn(1, 3, 64, 64), tmp_path / "five.onnx")
    words = ["compress", tmp_path / "five.onnx", "--data", config, "-o", tmp_path / "best.onnx"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "tells 5 classes apart, the data set has 2" in str(done.exception)
