"""The tutorials run from top to bottom as they are printed; both languages hold the same code.

Configurations of the same names describe tiny models and data, and lengths that are printed are shortened, so
that a page takes seconds.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.vision.config import build_model, load_config

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "tutorials"
NAMES = sorted(path.stem for path in PAGES.glob("*.md") if ".zh-CN" not in path.name)
SEGMENT = """
batch_size: 2
iters: 1
train_dataset: &data
  type: SyntheticOpticDisc
  count: 4
  size: 64
  transforms: [{type: Resize, target_size: [64, 64]}, {type: Normalize}]
val_dataset: {<<: *data, count: 2}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.01}
loss: {types: [{type: CrossEntropyLoss}], coef: [1, 0.4]}
model: {type: FastSCNN}
"""
CLASSIFY = """
batch_size: 32
iters: 1
train_dataset: &data
  type: ImageFolder
  dataset_root: images
  transforms: [{type: Resize, target_size: [32, 32]}, {type: Normalize}]
val_dataset: {<<: *data, mode: train}
learning_rate: {value: 0.01}
model: {type: MobileNetV1, scale: 0.25, small_input: true}
"""
#: What is printed, and what stands for it here.
SHORTER = {"--retraining_iters 100": "--retraining_iters 1", "--retraining_iters 10": "--retraining_iters 1",
           "--repeat 50": "--repeat 2", "--warmup 10": "--warmup 1", "epochs=5": "epochs=1",
           "epochs=2": "epochs=1",
           "batch_size=32": "batch_size=8", "--num_images 100": "--num_images 4",
           "--pruning_ratio 0.2": "--pruning_ratio 0.2 --samples 4 --no-sensitivity --no-distill",
           "--images 50": "--images 4",
           "--benchmark": "--benchmark --repeat 2"}  # fmt: skip


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of code of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (PAGES / f"{name}.md").read_text("utf-8"), flags=re.M | re.S)


def images_of(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    generator, made = np.random.default_rng(len(folder.name)), []
    for number in range(count):
        made.append(folder / f"{number}.jpg")
        assert cv2.imwrite(str(made[-1]), generator.integers(0, 255, (40, 48, 3), dtype=np.uint8))
    return made


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Path:
    """A folder with everything that a reader has before the first line."""
    monkeypatch.chdir(tmp_path)
    for path in ("quick_start/bisenet_optic_disc_512x512_1k", "classification/mobilenet_v1_cifar10",
                 "classification/mobilenet_v1_imagenet_224x224"):  # fmt: skip
        file = tmp_path / "configs" / f"{path}.yml"
        assert (ROOT / "configs" / f"{path}.yml").is_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SEGMENT if "disc" in path else CLASSIFY)
    for name in ("cat", "dog"):
        images_of(tmp_path / "images" / "train" / name, 8)
    images_of(tmp_path / "optic", 1)[0].rename(tmp_path / "optic_test_image.jpg")
    listed = images_of(tmp_path / "samples_100" / "val", 12)
    lines = "".join(f"val/{path.name} {number % 2}\n" for number, path in enumerate(listed))
    (tmp_path / "samples_100" / "val_list.txt").write_text(lines)
    weights = {"model.pth": "quick_start/bisenet_optic_disc_512x512_1k",
               "mobilenet_v1.pth": "classification/mobilenet_v1_imagenet_224x224"}  # fmt: skip
    for file, config in weights.items():
        model = build_model(load_config(f"configs/{config}.yml"), 2)
        torch.save(model.state_dict(), tmp_path / file)
    return tmp_path


def shortened(text: str) -> str:
    for printed, here in SHORTER.items():
        text = text.replace(printed, here)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs_from_top_to_bottom(name, stage):
    names: dict[str, object] = {}
    for language, text in blocks(name):
        if language == "python":
            exec(compile(shortened(text), f"{name}.md", "exec"), names)
        for command in text.replace("\\\n", " ").splitlines() if language == "shell" else ():
            words = shlex.split(shortened(command))
            assert words[0] == "quantrim"
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, (command, done.output, done.exception)


@pytest.mark.parametrize("name", NAMES)
def test_the_chinese_page_holds_the_same_code_and_sections(name):
    assert blocks(f"{name}.zh-CN") == blocks(name)
    pages = [(PAGES / f"{name}{suffix}.md").read_text("utf-8") for suffix in ("", ".zh-CN")]
    prose = [re.sub(r"```.*?```", "", page, flags=re.S) for page in pages]
    english, chinese = (re.findall(r"^#+ ", page, flags=re.M) for page in prose)
    assert english == chinese


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.name)
def test_links_of_a_tutorial_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8"))
    assert all((path.parent / link).resolve().exists() for link in links)


def test_there_is_a_page_for_each_of_the_five_documents():
    assert NAMES == ["classification", "compression", "post_training", "qat_api", "quantization"]
