"""A fleet of small models: every cell, what is kept, what a kill leaves, what a fault harms."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import ConfigError
from quantrim.fleet import read_fleet, run_fleet
from quantrim.fleet import work as fleet_work
from quantrim.fleet.cache import Step
from quantrim.fleet.matrix import Cell
from quantrim.fleet.pages import write_pages

YAML = """
workers: 2
models:
  net: {file: net.onnx, data: images.npy}
targets:
  openvino:
  fast: {target: onnxruntime}
budgets:
  any: {accept: any}
  small: {accept: any, max_mb: 0.001}
recipe: {samples: 8, judged: 8}
"""


@pytest.fixture
def folder(tmp_path, residual_onnx, images) -> Path:
    (tmp_path / "net.onnx").write_bytes(residual_onnx.read_bytes())
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "fleet.yaml").write_text(YAML)
    return tmp_path


def by_name(result) -> dict[str, Cell]:
    return {cell.name: cell for cell in result.cells}


def finished(folder: Path) -> dict[str, int]:
    """Time of writing of every finished step."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("out/cache/*/result.json")}


def test_every_cell_has_figures_and_a_second_run_repeats_nothing(folder):
    spec = read_fleet(folder / "fleet.yaml")
    result = run_fleet(spec, folder / "out")
    cells = by_name(result)
    assert [cell.verdict for cell in result.cells] == ["ok", "too large"] * 2
    one = cells["net.openvino.any"]
    assert one.ms > 0
    assert one.fp32_ms > 0
    assert one.size_mb < 0.1
    assert one.sqnr_db > 5
    assert Path(one.file).is_file()
    assert (result.made, result.kept, result.failed) == (4, 0, 0), "two files, each timed; limits are not steps"
    before = finished(folder)
    again = run_fleet(spec, folder / "out")
    assert (again.made, again.kept) == (0, 4)
    assert finished(folder) == before
    assert by_name(again)["net.openvino.any"].ms == one.ms
    page = write_pages(again, folder / "out").read_text()
    for word in ("net.fast.small.html", "too large", "2 of 4 files", "fast"):
        assert word in page
    assert (folder / "out" / "cells" / "net.openvino.any.html").is_file()
    assert not list(folder.glob("out/cache/*.part"))


def test_what_a_file_depends_on_decides_whether_it_is_made_again(folder, images):
    def made() -> int:
        return run_fleet(read_fleet(folder / "fleet.yaml"), folder / "out").made

    (folder / "fleet.yaml").write_text(YAML.replace("  fast: {target: onnxruntime}\n", ""))
    assert made() == 2
    os.utime(folder / "net.onnx")
    assert made() == 0, "times of files are no content"
    np.save(folder / "images.npy", images * 2)
    assert made() == 2
    text = (folder / "fleet.yaml").read_text()
    (folder / "fleet.yaml").write_text(text.replace("samples: 8", "samples: 6"))
    assert made() == 2
    (folder / "fleet.yaml").write_text(text.replace("max_mb: 0.001", "max_ms: 50"))
    assert made() == 0, "a limit changes verdicts alone, and the files of before are there still"


def test_a_killed_fleet_goes_on_where_it_was(folder):
    words = [sys.executable, "-m", "quantrim", "fleet", folder / "fleet.yaml", "--save-dir", folder / "out",
             "--workers", "1"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not finished(folder) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = finished(folder)
    assert 0 < len(before) < 4
    done = subprocess.run([*words, "--json", "-"], capture_output=True, text=True, timeout=280)
    value = json.loads(done.stdout)
    assert value["steps"] == {"made": 4 - len(before), "kept": len(before), "failed": 0}
    after = finished(folder)
    assert {key: after[key] for key in before} == before
    assert done.returncode == 3, "some files are over their budget"


def test_faults_stay_where_they_are(folder):
    (folder / "broken.onnx").write_bytes((folder / "net.onnx").read_bytes()[:400])
    text = YAML.replace("  openvino:\n", "").replace("  small: {accept: any, max_mb: 0.001}\n", "")
    (folder / "fleet.yaml").write_text(
        text.replace("models:", "models:\n  broken: {file: broken.onnx, data: images.npy}")
    )
    done = CliRunner().invoke(app, ["fleet", str(folder / "fleet.yaml"), "--save-dir", str(folder / "out")])
    assert "1 steps failed" in str(done.exception)
    cells = json.loads((folder / "out" / "fleet.json").read_text())["cells"]
    assert [(cell["model"], cell["verdict"]) for cell in cells] == [("broken", "failed"), ("net", "ok")]
    assert "truncated" in cells[0]["reason"]
    assert "could not be made" in (folder / "out" / "fleet.html").read_text()


def test_a_step_whose_process_dies_is_one_failed_step(folder):
    inputs = {"models": [str(folder / "net.onnx")], "engine": "openvino", "shape": None, "threads": 1}
    step = Step("time", {}, inputs | {"repeat": 10_000_000})
    found = []
    worker = threading.Thread(target=lambda: found.append(fleet_work.done(str(folder / "cache"), step)))
    (folder / "cache").mkdir()
    worker.start()
    while not fleet_work._running:
        time.sleep(0.01)
    next(iter(fleet_work._running)).send_signal(signal.SIGKILL)
    worker.join()
    assert found[0].result is None
    assert "SIGKILL" in found[0].error
    assert not list((folder / "cache").glob("*.part")), "and nothing of it is left"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("net.onnx", "absent.onnx", r"fleet.yaml:4: models.net.file: .*absent.onnx: no such file"),
        ("budgets", "budget", r"fleet.yaml:8: unknown key 'budget'; did you mean 'budgets'"),
        ("{target: onnxruntime}", "", r"fast: unknown target 'fast'"),
        ("accept: any}", "accept: most}", r"fleet.yaml:9: budgets.any.accept: unknown 'most'"),
        ("samples: 8", "samples: 0", r"recipe.samples: is 0"),
        ("fast:", "a/b:", r"'a/b' can't be part of a file's name"),
        ("{target: onnxruntime}", "{target: onnxruntime, on: board}", r"not of the form ssh://"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(folder, old, new, words):
    (folder / "fleet.yaml").write_text(YAML.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        read_fleet(folder / "fleet.yaml")


def test_a_learned_target_is_a_file_beside_the_yaml(folder):
    from quantrim.targets import ONNXRUNTIME, save_target

    save_target(ONNXRUNTIME, folder / "mine.json")
    (folder / "fleet.yaml").write_text(YAML.replace("{target: onnxruntime}", "{target: mine.json}"))
    spec = read_fleet(folder / "fleet.yaml")
    assert spec.engine_of("fast") == "onnxruntime"
    assert Path(spec.rules_of("fast")) == folder / "mine.json"


def test_the_fastest_file_within_a_drop(folder):
    text = YAML.replace("  openvino:\n", "").replace("  any: {accept: any}\n", "  drop: {max_drop: 100}\n")
    (folder / "fleet.yaml").write_text(text.replace("  small: {accept: any, max_mb: 0.001}\n", ""))
    (cell,) = run_fleet(read_fleet(folder / "fleet.yaml"), folder / "out").cells
    assert cell.verdict == "ok"
    assert cell.score is not None
    assert cell.reason, "says what was chosen"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_fleet_on_ray(folder):
    result = run_fleet(read_fleet(folder / "fleet.yaml"), folder / "out", ray=True)
    assert [cell.verdict for cell in result.cells] == ["ok", "too large"] * 2
    assert run_fleet(read_fleet(folder / "fleet.yaml"), folder / "out", ray=True).made == 0
