"""docs/faster.md: its Python runs, its commands have their options, and its table names every rewrite."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from quantrim.cli import app
from quantrim.rewrites import REWRITES

TEXT = (Path(__file__).parents[2] / "docs" / "faster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)
PYTHON = [body for kind, body in BLOCKS if kind == "python"]
COMMANDS = [line for kind, body in BLOCKS if not kind for line in body.splitlines() if "quantrim" in line]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_the_python_of_the_page_runs(number, residual_onnx, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(residual_onnx.read_bytes())
    exec(compile(PYTHON[number], f"docs/faster.md block {number}", "exec"), {"images": images})


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_exist_with_their_options(line):
    program, verb, *words = shlex.split(line)
    assert program == "quantrim"
    command = typer.main.get_command(app).commands[verb]
    legal = {word for option in command.params for word in option.opts}
    assert {word for word in words if word.startswith("-")} <= legal


def test_the_table_names_every_rewrite_with_its_exactness():
    rows = dict(re.findall(r"^\| ([a-z][a-z -]+) \|.*\| (bits|rounding) \|$", TEXT, re.M))
    assert rows == {rewrite.name: rewrite.exactness for rewrite in REWRITES}
