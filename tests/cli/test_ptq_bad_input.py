"""Bad input of ``quantrim ptq``: one line, exit code 1, and no file is left."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from quantrim.cli import main

NO_DATA = "model: {type: FastSCNN}\niters: 1\nlr_scheduler: {type: PolynomialDecay, learning_rate: 0.1}\n"
NORMALIZE = {"type": "Normalize"}


@pytest.fixture
def told(residual_onnx, images, tmp_path, monkeypatch, capsys):
    """The line that the command ends with, given its words; they are relative to a folder with good input."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(residual_onnx, "model.onnx")
    np.save("good.npy", images[:2])
    Path("photos").mkdir()
    for number in range(3):
        assert cv2.imwrite(f"photos/{number}.png", np.full((40, 40, 3), 80 * number, np.uint8))

    def run(*words: str, model: str = "model.onnx", output: str = "int8.onnx") -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(
            "sys.argv", ["quantrim", "ptq", model, "-o", output, "--engine", "onnxruntime", *words]
        )
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert (stop.value.code, captured.out) == (1, "")
        assert captured.err.startswith("quantrim: error: ")
        assert captured.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return captured.err

    return run


def test_the_usual_kinds_of_bad_data_are_told(told, images):
    Path("empty").mkdir()
    assert "empty: no image in this folder" in told("--data", "empty")
    picture = Path("photos/1.png")
    picture.write_bytes(picture.read_bytes()[:60])
    assert "photos/1.png: can't be decoded as an image" in told("--data", "photos")
    np.save("grey.npy", images[:2, :1])
    assert "grey.npy: sample 0 has shape 1x32x32, but input 'image' takes ?x3x32x32" in told(
        "--data", "grey.npy"
    )
    broken = images[:2].copy()
    broken[1, 2, 3, 4] = np.nan
    np.save("nan.npy", broken)
    assert "nan.npy: sample 1 holds NaN or infinite values" in told("--data", "nan.npy")
    Path("none.yml").write_text(NO_DATA)
    assert "none.yml: train_dataset: is missing" in told("--data", "none.yml")


def test_a_truncated_model_and_a_folder_that_cannot_be_written_are_told(told):
    whole = Path("model.onnx").read_bytes()
    Path("cut.onnx").write_bytes(whole[: len(whole) // 2])
    assert "cut.onnx: not an ONNX file, or a truncated one" in told("--data", "good.npy", model="cut.onnx")
    Path("file").touch()
    assert "file: can't be written" in told("--data", "good.npy", output="file/int8.onnx")


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        ("Normalize", "deploy.yaml:2: Deploy.transforms: is 'Normalize'; it must be a list"),
        (["Normalize"], "deploy.yaml:3: Deploy.transforms.0: transform 'Normalize': it must be a mapping"),
        (
            [{"type": "Normalise"}],
            "deploy.yaml:3: Deploy.transforms.0: unknown transform 'Normalise'; did you mean",
        ),
        (
            [NORMALIZE],
            "photos/0.png after its preprocessing has shape 3x40x40, but input 'image' takes ?x3x32x32",
        ),
    ],
)
def test_a_deploy_yaml_that_is_wrong_or_does_not_fit_is_told(told, transforms, words):
    Path("deploy.yaml").write_text(yaml.safe_dump({"Deploy": {"transforms": transforms}}))
    assert words in told("--data", "photos")


def test_a_deploy_yaml_that_is_no_text_is_told(told):
    Path("deploy.yaml").write_bytes(b"\xff\xfe\x00")
    assert "deploy.yaml: no text file in UTF-8" in told("--data", "photos")
