"""``deploy.yaml`` goes with the file that ``quantrim ptq`` makes, and the images' preprocessing is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import ConfigError
from quantrim.graph import read_onnx
from quantrim.graph.session import save_model
from quantrim.recipes.deploy import carry_deploy, note_precision
from quantrim.recipes.deployment import read_deployment
from quantrim.rewrites.files import ask_precision

HALF = {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def write_deploy(folder: Path, model: str = "model.onnx", **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    section = {"model": model, "task": "classification", "transforms": [HALF], "output": "none"} | changes
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": section}))
    return folder / "deploy.yaml"


def section(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["Deploy"]


@pytest.fixture
def model(tmp_path, residual_onnx) -> Path:
    """A float model in a folder of its own, without deploy.yaml."""
    (tmp_path / "fp32").mkdir()
    return shutil.copy(residual_onnx, tmp_path / "fp32" / "model.onnx")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(2):
        assert cv2.imwrite(str(folder / f"{number}.png"), generator.integers(0, 255, (32, 32, 3), np.uint8))
    return folder


def ptq(model: Path, output: Path, data: Path, *words: object) -> str:
    """What the command prints, on one line where it wrapped."""
    arguments = ["ptq", model, "-o", output, "--data", data, "--samples", 2, "--engine", "onnxruntime"]
    done = CliRunner().invoke(app, [str(word) for word in (*arguments, "--refine", "none", *words)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_the_int8_file_gets_the_deploy_yaml_of_its_model(model, photos, tmp_path):
    deploy = write_deploy(model.parent, classes=["a", "b"], params="model.pdiparams")
    output = tmp_path / "elsewhere" / "int8.onnx"
    told = ptq(model, output, photos)
    assert f"Images were prepared as {deploy} says." in told
    assert f"{output.parent / 'deploy.yaml'}: how images for int8.onnx are prepared." in told
    made, given = section(output.parent / "deploy.yaml"), section(deploy)
    assert made.pop("model") == "int8.onnx"
    assert {given.pop("model"), given.pop("params")} == {"model.onnx", "model.pdiparams"}
    assert made == given


def test_a_deploy_yaml_that_was_named_is_carried_too(model, photos, tmp_path):
    deploy = write_deploy(tmp_path / "named")
    told = ptq(model, tmp_path / "out" / "int8.onnx", photos, "--deploy", deploy)
    assert f"Images were prepared as {deploy} says." in told
    assert section(tmp_path / "out" / "deploy.yaml")["model"] == "int8.onnx"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225, crop (ImageNet's default)."),
        (
            ("--mean", "0.5", "--fit", "stretch"),
            "mean 0.5, 0.5, 0.5, std 0.229, 0.224, 0.225, stretch (as given).",
        ),
    ],
)
def test_preprocessing_without_deploy_yaml_is_told(model, photos, tmp_path, words, message):
    if words:
        write_deploy(model.parent)  # the options say that it does not hold, so it is not carried either
    told = ptq(model, tmp_path / "out" / "int8.onnx", photos, *words)
    assert f"Images were prepared with {message}" in told
    assert not (tmp_path / "out" / "deploy.yaml").exists()


def test_beside_the_model_its_own_deploy_yaml_stays_as_it_is(tmp_path):
    deploy = write_deploy(tmp_path)
    before = deploy.read_bytes()
    assert carry_deploy(tmp_path / "model.onnx", None, tmp_path / "int8.onnx") == deploy
    assert deploy.read_bytes() == before


def test_a_deploy_yaml_of_another_model_is_not_overwritten(model, photos, tmp_path):
    write_deploy(model.parent)
    other = write_deploy(tmp_path / "out", "other.onnx", output="argmax")
    before = other.read_bytes()
    told = ptq(model, tmp_path / "out" / "int8.onnx", photos)
    assert f"{other} is another model's and was left as it is" in told
    assert other.read_bytes() == before
    other.write_text("something: else")
    assert carry_deploy(model, None, tmp_path / "out" / "int8.onnx") is None
    assert other.read_text() == "something: else"


def test_a_later_run_renews_the_deploy_yaml_of_its_own_output(tmp_path):
    write_deploy(tmp_path / "fp32")
    old = write_deploy(tmp_path / "out", "int8.onnx", output="argmax")
    assert carry_deploy(tmp_path / "fp32" / "model.onnx", None, tmp_path / "out" / "int8.onnx") == old
    assert section(old)["output"] == "none"
    assert [path.name for path in old.parent.iterdir()] == ["deploy.yaml"]


def test_a_paddle_model_has_its_deploy_yaml_inside_its_folder(tmp_path):
    write_deploy(tmp_path / "paddle", "model.pdmodel", params="model.pdiparams")
    (tmp_path / "out").mkdir()
    place = carry_deploy(tmp_path / "paddle", None, tmp_path / "out" / "int8.onnx")
    assert place is not None
    assert section(place) == {
        "model": "int8.onnx", "task": "classification", "transforms": [HALF], "output": "none"
    }  # fmt: skip


def test_without_a_deploy_yaml_there_is_nothing_to_carry(tmp_path):
    assert carry_deploy(tmp_path / "model.onnx", None, tmp_path / "out" / "int8.onnx") is None
    with pytest.raises(ConfigError, match=r"no deploy\.yaml with a section Deploy"):
        carry_deploy(tmp_path / "model.onnx", tmp_path / "missing.yaml", tmp_path / "out" / "int8.onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", ["bf16", "f32"])
def test_the_precision_that_a_file_asks_for_stands_in_its_deploy_yaml(tmp_path, residual_onnx, asked):
    write_deploy(tmp_path / "fp32")
    output = tmp_path / "out" / "int8.onnx"
    output.parent.mkdir()
    model = read_onnx(residual_onnx)
    ask_precision(model, asked)
    save_model(model, output)
    place = carry_deploy(tmp_path / "fp32" / "model.onnx", None, output)
    assert place is not None
    assert section(place).get("precision", "f32") == asked
    assert read_deployment(place).precision == (None if asked == "f32" else asked)


def test_tuning_a_file_again_renews_the_precision_beside_it(tmp_path, residual_onnx):
    path, deploy = tmp_path / "m.onnx", write_deploy(tmp_path, "m.onnx")
    before = deploy.read_bytes()
    model = read_onnx(residual_onnx)
    for asked in ("bf16", "f32"):
        ask_precision(model, asked)
        save_model(model, path)
        note_precision(path)
        assert section(deploy).get("precision", "f32") == asked
    assert yaml.safe_load(before) == yaml.safe_load(deploy.read_text())


def test_the_file_for_uint8_images_is_written_beside(model, photos, tmp_path):
    write_deploy(model.parent)
    told = ptq(model, tmp_path / "out" / "int8.onnx", photos, "--image-file", str(tmp_path / "image.onnx"))
    assert "image.onnx: the same for uint8 images" in told
    assert str(read_onnx(tmp_path / "image.onnx").graph.inputs[0].dtype) == "UINT8"
