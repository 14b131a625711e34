"""What an installation brings: files of the wheel, and without the extra "train" all that needs no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The content of a wheel that was built from these sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("quantrim", "configs", "examples"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*command, source], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def quantrim(site: Path, folder: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "quantrim", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_brings_configurations_and_examples(installed, tmp_path):
    listed = quantrim(installed, tmp_path, "configs", "list").split()
    assert listed == sorted(str(path.relative_to(ROOT / "configs")) for path in ROOT.glob("configs/*/*.yml"))
    name = "quick_start/bisenet_synthetic_disc_256x256"
    assert "_base_: demo.yml" in quantrim(installed, tmp_path, "configs", "show", name)
    quantrim(installed, tmp_path, "examples", "copy")
    assert (tmp_path / "examples/qat_fashion_mnist.py").is_file()
    assert (tmp_path / "examples/serving/__main__.py").is_file()


def test_a_configuration_of_the_documents_is_found_where_there_is_no_clone(installed, tmp_path):
    code = (
        "import sys; from quantrim.vision.document import read_document; print(read_document(sys.argv[1]).path)"
    )
    name = "configs/quick_start/bisenet_synthetic_disc_256x256.yml"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code, name]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == installed / "quantrim" / name
