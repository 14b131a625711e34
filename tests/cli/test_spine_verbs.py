"""The verbs as a user types them, in a process of their own where exit codes matter."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from quantrim.cli import app


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantrim", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def data(tmp_path, images):
    np.save(tmp_path / "images.npy", images)
    return str(tmp_path / "images.npy")


def test_ptq_prints_the_headline_and_writes_json(residual_onnx, data, tmp_path):
    output, report = tmp_path / "int8.onnx", tmp_path / "result.json"
    done = run("ptq", str(residual_onnx), "--data", data, "-o", str(output), "--json", str(report))
    assert done.returncode == 0, done.stderr
    assert "INT8" in done.stdout.splitlines()[0]
    assert output.is_file()
    assert json.loads(report.read_text())["output"] == str(output)


def test_json_on_stdout_is_nothing_but_json(residual_onnx):
    done = run("bench", str(residual_onnx), "--warmup", "1", "--repeat", "2", "--json", "-")
    rows = json.loads(done.stdout)
    assert rows[0]["model"] == str(residual_onnx)
    assert rows[0]["latency_ms"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ptq", "nowhere.onnx", "--data", "x", "-o", "y.onnx"], 1, "nowhere.onnx: no such file"),
        (["ptq", "nowhere.onnx"], 2, "Missing option"),
        (["bench", "nowhere.onnx", "--engine", "openvin"], 1, "did you mean 'openvino'"),
        (["inspect", "nowhere.onnx"], 1, "no such file"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_failures_have_one_clear_line_and_the_right_exit_code(arguments, code, words):
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1


def test_doctor_says_what_to_expect():
    result = CliRunner().invoke(app, ["doctor", "--json", "-"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["expect"]


def test_inspect_lists_layers_and_errors(residual_onnx, data, tmp_path):
    output = str(tmp_path / "q.onnx")
    assert run("ptq", str(residual_onnx), "--data", data, "-o", output).returncode == 0
    result = CliRunner().invoke(app, ["inspect", output, "--against", str(residual_onnx), "--layers"])
    assert result.exit_code == 0, result.output
    assert "100.0% of the MACs" in result.output
    assert "SQNR" in result.output


def test_the_help_of_every_verb_is_fast_and_complete():
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    for command in app.registered_commands:
        assert CliRunner().invoke(app, [str(command.name), "--help"]).exit_code == 0
