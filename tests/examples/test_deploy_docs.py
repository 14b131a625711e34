"""docs/deploy.md: its Python runs, its commands exist with the options that it shows."""

import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn

from examples.serving.load_test import main as load_test
from quantrim.cli import app
from quantrim.post_training import ptq
from quantrim.recipes.loading import Loaded
from quantrim.recipes.runs import export
from quantrim.vision.config import load_config
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.shipped import shipped_file

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)
PYTHON = [body for kind, body in BLOCKS if kind == "python"]
COMMANDS = [
    line.split(" #")[0].strip()
    for kind, body in BLOCKS
    if not kind
    for line in body.replace("\\\n", " ").splitlines()
]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory) -> Path:
    """A folder with model.int8.onnx, deploy.yaml and photo.jpg."""
    folder = tmp_path_factory.mktemp("deploy")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    data = VisionData([(pixels, 0)], "classification", 4, class_names=("a", "b", "c", "d"))
    config = load_config(shipped_file("configs", "quick_start/demo.yml"))
    export(Loaded(config, net.eval(), data), folder / "model.onnx")
    images = np.random.default_rng(1).standard_normal((8, 3, 64, 64)).astype(np.float32)
    ptq(folder / "model.onnx", images, folder / "model.int8.onnx", engines=())
    Image.fromarray(pixels).save(folder / "photo.jpg")
    return folder


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_the_python_of_the_page_runs(code, artefact, monkeypatch, capsys):
    monkeypatch.chdir(artefact)
    exec(compile(code, "docs/deploy.md", "exec"), {})
    assert "(1, 4)" in capsys.readouterr().out


def test_the_preprocessing_that_the_page_spells_out_is_that_of_deploy_yaml(artefact):
    from quantrim.recipes.deployment import load_transforms

    image = np.asarray(Image.open(artefact / "photo.jpg").convert("RGB"), np.float32)
    spelled = ((image / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    np.testing.assert_allclose(load_transforms(artefact / "deploy.yaml")(image), spelled, atol=1e-6)


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def checked(words: list[str], command: click.Command) -> None:
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= options_of(command)


def test_the_commands_of_the_page_exist_with_their_options():
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    modules = {"examples.serving.load_test": load_test}
    seen = 0
    for command in COMMANDS:
        words = shlex.split(command)
        if words[:1] == ["quantrim"]:
            checked(words[2:], verbs[words[1]])
            seen += 1
        elif words[:2] == ["python", "-m"]:
            single = typer.Typer()
            single.command()(modules[words[2]])
            checked(words[3:], typer.main.get_command(single))
            seen += 1
    assert seen >= 10


def test_the_links_of_the_page_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
