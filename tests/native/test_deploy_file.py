"""The native runner reads the deploy.yaml that quantrim writes, and refuses what is none in one line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from quantrim.recipes.example import SOURCE

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "cpp" / "src"
SOURCES = [HERE / "print_options.cpp", NATIVE / "options.cpp", NATIVE / "deploy.cpp"]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("native") / "options"
    subprocess.run(["g++", "-std=c++17", *map(str, SOURCES), "-o", str(program)], check=True)

    def run(*words: object) -> tuple[int, str]:
        done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
        return done.returncode, (done.stdout + done.stderr).strip()

    return run


def test_the_file_that_quantrim_writes_names_model_and_precision(read, tmp_path):
    content = {
        "model": "a b.onnx",
        "task": "detection",
        "classes": ["model: x", "y"],
        "precision": "bf16",
        "transforms": [{"type": "Resize", "target_size": [3, 4]}],
        "decoder": {"type": "yolox", "model": "no"},
    }
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump({"Deploy": content}, sort_keys=False))
    assert read("--config", path) == (0, f"{tmp_path}/a b.onnx\nbf16")
    assert read("--config", path, "--infer_model", "other.onnx", "--precision=f32") == (0, "other.onnx\nf32")
    assert read("--config", SOURCE / "deploy.yaml") == (0, f"{SOURCE}/model.onnx\nfile")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Deploy:\n  task: segmentation\n", "Deploy.model is missing"),
        ("Global: 1\n", "no section Deploy"),
        ("Deploy: {model: x}\n", "one key a line"),
        ("Deploy:\n  model: 'x\n", "a quote is not closed"),
        ("Deploy:\n  model: x\n  model: y\n", "stands twice"),
        ("Deploy:\n  x: " + "y" * 2**17 + "\n", "larger than 128 kB"),
    ],
)
def test_what_is_no_deploy_file_ends_in_one_line(read, tmp_path, text, message):
    (tmp_path / "deploy.yaml").write_text(text)
    code, said = read("--config", tmp_path / "deploy.yaml")
    assert code == 1
    assert message in said
    assert "\n" not in said
    assert read("--config", tmp_path / "none.yaml")[0] == 1
