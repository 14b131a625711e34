"""docs/detection.md says what works: its commands run from top to bottom, on tiny data and few iterations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.detection import decoder_from, thresholds_from
from quantrim.vision.config import build_model, load_config
from quantrim.vision.data.scenes import Scenes
from quantrim.vision.models.resolve import MODELS, model_from_spec
from tests.cli.test_detectors_smaller import CONFIG as TINY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "detection.md").read_text(encoding="utf-8")
#: What is added so that a command takes seconds.
SHORTER = {
    "ptq": ["--samples", "2"],
    "qat": ["--iters", "2", "--samples", "2"],
    "prune": ["--samples", "2", "--ratios", "0.5", "--retraining-iters", "1"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "made"),
    [
        (0, ["int8.onnx", "qat/model_int8.onnx", "boxes/coco_results.json"]),
        (1, ["pruned/plan.json", "pruned_qat/model_int8.onnx"]),
    ],
)
def test_the_commands_run(number: int, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "configs" / "detection" / "yolov3_mobilenet_v1_scenes.yml"
    weights = tmp_path / "output" / "yolov3" / "best_model" / "model.pth"
    for path in (config, weights):
        path.parent.mkdir(parents=True)
    config.write_text(TINY)
    torch.save(build_model(load_config(config), 6).state_dict(), weights)
    (tmp_path / "photos").mkdir()
    Image.fromarray(Scenes(1, 64)[0][0]).save(tmp_path / "photos" / "scene.png")
    for command in blocks("bash")[number].replace("\\\n", " ").splitlines():
        program, verb, *words = shlex.split(command)
        assert program == "quantrim"
        result = CliRunner().invoke(app, [verb, *words, *SHORTER.get(verb, [])])
        assert result.exit_code == 0, f"{command}\n{result.exception or result.output}"
    for path in made:
        assert (tmp_path / "output" / "yolov3" / path).is_file()


def test_configurations_that_are_named_build_models():
    spec = {"type": "YOLOv3", "backbone": {"type": "torchvision.models.resnet18", "weights": None}}
    assert "{type: YOLOv3, backbone: {type: torchvision.models.resnet18, weights: null}}" in PAGE
    assert model_from_spec(spec).backbone.feat_channels == (128, 256, 512)
    for name in re.findall(r"^\| `(\w+)`", PAGE.partition("## Data")[0], flags=re.MULTILINE):
        assert name in MODELS


def test_the_deploy_section_is_legal():
    section = yaml.safe_load(blocks("yaml")[0])["Deploy"]
    assert decoder_from(section["decoder"]).type == "yolox"
    assert thresholds_from(section["thresholds"]).keep == 100
