"""What an installation without the extra "train" does: everything that needs no torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Runs code as if the packages of the extra were not there.
WITHOUT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def extra_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {line.split(">=")[0].replace("-", "_") for line in project["optional-dependencies"]["train"]}
    assert "torch" in names
    return names


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    text = WITHOUT.format(absent=extra_packages()) + code
    return subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True, check=False)


def test_a_file_is_quantized_inspected_timed_and_reported_without_torch(residual_onnx, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    code = """
import quantrim as qt
from quantrim.report import write_report

source, data, output, page = sys.argv[1:]
result = qt.ptq(source, data, output, samples=4, engines=("onnxruntime",))
assert qt.inspect(result.output, engine="onnxruntime").verdict.int8_mac_share > 0
assert qt.bench([source, result.output], engines=("onnxruntime",), repeat=2, warmup=1)
write_report(page, "without torch", result.to_json())
assert "torch" not in sys.modules
"""
    words = (residual_onnx, tmp_path / "images.npy", tmp_path / "int8.onnx", tmp_path / "page.html")
    done = run(code, *map(str, words))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize("words", [("train", "-c", "x.yml"), ("prune", "-c", "x.yml", "--weights", "w.pth")])
def test_a_verb_that_trains_says_what_to_install(words, tmp_path):
    done = run("from quantrim.cli import main; main()", *words)
    assert done.returncode == 1
    assert "pip install 'quantrim[train]'" in done.stderr
    assert "Traceback" not in done.stderr
