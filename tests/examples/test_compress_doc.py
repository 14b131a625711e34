"""docs/compress.md: its Python runs, and its commands have the options that it shows."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer

from quantrim.cli import app

TEXT = (Path(__file__).parents[2] / "docs" / "compress.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)
PYTHON = [body for kind, body in BLOCKS if kind == "python"]
COMMANDS = [line for kind, body in BLOCKS if not kind for line in body.splitlines()]


@pytest.mark.parametrize("number", range(1, len(PYTHON)))  # the first makes the samples
def test_the_python_of_the_page_runs(number, residual_onnx, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(residual_onnx.read_bytes())
    labels = np.random.default_rng(0).integers(0, 10, len(images))
    exec(
        compile(PYTHON[number], f"docs/compress.md block {number}", "exec"),
        {"images": images, "labels": labels},
    )
    assert (tmp_path / "best.onnx").is_file()


def test_the_samples_of_the_page_are_made_as_printed():
    made: dict[str, np.ndarray] = {}
    exec(PYTHON[0], made)
    assert len(made["images"]) == len(made["labels"])


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_exist_with_their_options(line):
    program, verb, *words = shlex.split(line)
    assert program == "quantrim"
    command = typer.main.get_command(app).commands[verb]
    legal = {word for option in command.params for word in option.opts}
    assert {word for word in words if word.startswith("-")} <= legal


def test_every_option_in_the_text_is_one_of_its_verbs():
    commands = typer.main.get_command(app).commands
    legal = {
        word for verb in ("compress", "analyze") for option in commands[verb].params for word in option.opts
    }
    assert set(re.findall(r"`(--[a-z-]+)", TEXT)) <= legal
