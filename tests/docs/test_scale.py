"""docs/scale.md: its Python runs, and its commands have the options that it shows."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from quantrim.cli import app

TEXT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)
PYTHON = [body for kind, body in BLOCKS if kind == "python"]
COMMANDS = [
    line for kind, body in BLOCKS if not kind for line in body.splitlines() if line.startswith("quantrim ")
]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_the_python_of_the_page_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[number], f"docs/scale.md block {number}", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_exist_with_their_options(line):
    program, verb, *words = shlex.split(line, comments=True)
    assert program == "quantrim"
    command = typer.main.get_command(app).commands[verb]
    if hasattr(command, "commands"):  # quantrim target learn
        command = command.commands[words.pop(0)]
    legal = {word for option in command.params for word in option.opts}
    assert {word for word in words if word.startswith("-")} <= legal


def test_the_fleet_of_the_page_is_one(tmp_path):
    from quantrim.fleet import read_fleet

    (text,) = (body for kind, body in BLOCKS if kind == "yaml" and "models:" in body)
    (tmp_path / "fleet.yaml").write_text(text)
    (tmp_path / "photos").mkdir()
    for name in ("lite0.onnx", "unet.onnx", "scenes.npy"):
        (tmp_path / name).touch()
    spec = read_fleet(tmp_path / "fleet.yaml")
    assert spec.engine_of("phone") == "onnxruntime"
    assert list(spec.budgets) == ["faithful", "half-a-point"]
