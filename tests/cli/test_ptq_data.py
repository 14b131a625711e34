"""Where ``quantrim ptq`` takes its calibration data from, and how it prepares them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from quantrim.cli import app
from quantrim.recipes.calibration import calibration_pairs, deployed_decoder
from quantrim.recipes.loading import load
from quantrim.recipes.runs import export
from quantrim.vision.config import load_config

CONFIG = """
_base_: {base}
train_dataset: {{type: SyntheticOpticDisc, count: 6, size: 64, mode: train,
  transforms: [{{type: RandomHorizontalFlip}}, {{type: Normalize}}]}}
val_dataset: {{type: SyntheticOpticDisc, count: 2, size: 64, mode: val, transforms: [{{type: Normalize}}]}}
model: {{type: FastSCNN}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yml"
    base = Path(__file__).parents[2] / "configs" / "quick_start" / "demo.yml"
    path.write_text(CONFIG.format(base=base))
    return path


@pytest.fixture(scope="module")
def model(config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(load(load_config(config), None), path)
    return path


def ptq(model: Path, output: Path, *words: object) -> Result:
    arguments = ["ptq", model, "-o", output, "--samples", 4, "--engine", "onnxruntime", *words]
    return CliRunner().invoke(app, [str(word) for word in arguments])


def ranges(output: Path) -> dict:
    return json.loads(output.with_suffix(".ranges.json").read_text())


def test_a_configuration_gives_its_training_pictures_without_augmentation(config, model, tmp_path):
    loaded = load_config(config)
    pictures = np.stack([image.numpy() for image, _ in calibration_pairs(loaded, 4)])
    np.save(tmp_path / "same.npy", pictures)
    for data, name in ((config, "a"), (tmp_path / "same.npy", "b")):
        done = ptq(model, tmp_path / f"{name}.onnx", "--data", data, "--refine", "none")
        assert done.exit_code == 0, done.output
    assert ranges(tmp_path / "a.onnx") == ranges(tmp_path / "b.onnx")


def test_deploy_yaml_beside_the_model_prepares_image_files(model, tmp_path):
    generator = np.random.default_rng(0)
    for number in range(4):
        picture = generator.integers(0, 255, (64, 64, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    decode = deployed_decoder(model.parent / "deploy.yaml")
    ready = np.stack([decode(tmp_path / f"{number}.png") for number in range(4)])
    np.save(tmp_path / "ready.npy", ready)
    for data, name in ((tmp_path, "a"), (tmp_path / "ready.npy", "b")):
        done = ptq(model, tmp_path / f"{name}.onnx", "--data", data, "--refine", "none")
        assert done.exit_code == 0, done.output
    assert ranges(tmp_path / "a.onnx") == ranges(tmp_path / "b.onnx")


def test_two_ways_to_prepare_images_are_refused(model, tmp_path):
    words = ("--data", tmp_path, "--deploy", model.parent / "deploy.yaml", "--mean", "0,0,0")
    done = ptq(model, tmp_path / "a.onnx", *words)
    assert done.exit_code == 1
    assert "leave --mean" in str(done.exception)


def test_inspect_prepares_its_data_as_ptq_did(config, model, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(4):
        picture = generator.integers(0, 255, (64, 64, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), picture)
    output = tmp_path / "int8.onnx"  # deploy.yaml lies beside the float model
    assert ptq(model, output, "--data", tmp_path / "in").exit_code == 0
    decode = deployed_decoder(model.parent / "deploy.yaml")
    np.save(tmp_path / "ready.npy", np.stack([decode(tmp_path / "in" / f"{n}.png") for n in range(4)]))
    common = ["inspect", output, "--against", model, "--engine", "onnxruntime"]
    agreements = []
    for data in (tmp_path / "in", tmp_path / "ready.npy"):
        done = CliRunner().invoke(app, [str(word) for word in (*common, "--data", data, "--json", "-")])
        assert done.exit_code == 0, done.output
        agreements.append(json.loads(done.stdout)["agreement"])
    assert agreements[0] == agreements[1]
    words = [*common, "--data", config, "--samples", 2]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
