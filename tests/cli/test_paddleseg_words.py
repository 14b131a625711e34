"""Commands as PaddleSeg's documents print them: words, blanks between numbers, names of scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.cli.options import joined
from quantrim.errors import CheckpointError, ConfigError

CONFIG = """
batch_size: 2
iters: 1
train_dataset: &data
  type: Dataset
  dataset_root: {root}
  num_classes: 2
  mode: train
  transforms: [{{type: Normalize}}]
val_dataset: {{<<: *data}}
learning_rate: {{value: 0.01}}
loss: {{types: [{{type: CrossEntropyLoss}}], coef: [1, 0.4]}}
model: {{type: FastSCNN}}
"""


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def run(*words: object) -> str:
    done = invoke(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with set, config.yml, float weights and weights of qat; then the set goes away."""
    root, generator = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    lines = []
    for number in range(3):
        mask = np.zeros((64, 64), np.uint8)
        mask[10:40, 5 + number : 30] = 1
        image = generator.integers(0, 90, (64, 64, 3), dtype=np.uint8) + 140 * mask[:, :, None]
        cv2.imwrite(str(root / f"i{number}.png"), image)
        Image.fromarray(mask).save(root / f"m{number}.png")
        lines.append(f"i{number}.png m{number}.png\n")
    (root / "data").mkdir()
    (root / "train_list.txt").write_text("".join(lines))
    (root / "config.yml").write_text(CONFIG.format(root=root))
    shutil.copy(root / "i0.png", root / "data" / "eye.png")
    base = ("--config", root / "config.yml", "--do_eval", "--use_vdl", "--device", "cpu")
    run("train", *base, "--save_dir", root / "fp32")
    run("qat", *base, "--model_path", root / "fp32/best_model/model.pth", "--learning_rate", 0.001,
        "--save_interval", 250, "--save_dir", root / "quant", "--samples", 3)  # fmt: skip
    shown = run("qat_val", "--config", root / "config.yml", "--model_path", root / "quant/best_model/model.pth",
                "--json", "-")  # fmt: skip
    (root / "metrics.json").write_text(shown)
    for number in range(3):
        (root / f"i{number}.png").unlink()
    return root


def test_training_with_quantization_leaves_weights_file_events_and_how_it_was_quantized(trained):
    assert (trained / "quant/best_model/model.pth").is_file()
    assert (trained / "quant/model_int8.onnx").is_file()
    assert list((trained / "quant").rglob("*tfevents*"))
    noted = json.loads((trained / "quant/best_model/quantization.json").read_text())
    assert noted["target"] == "portable"


def test_quantized_weights_are_judged_as_their_run_judged_them(trained):
    told = json.loads((trained / "metrics.json").read_text())["metrics"]
    found = json.loads((trained / "quant/qat.json").read_text())["metrics"]
    assert told["mIoU"] == pytest.approx(found["qat"], abs=1e-6)


def test_quantized_weights_are_exported_and_predicted_without_the_data(trained, tmp_path):
    weights = trained / "quant/best_model/model.pth"
    run("qat_export", "--config", trained / "config.yml", "--model_path", weights, "--save_dir", tmp_path / "x",
        "--input_shape", 1, 3, 64, 64)  # fmt: skip
    run("predict", "--config", trained / "config.yml", "--model_path", weights,
        "--image_path", trained / "data", "--save_dir", tmp_path / "torch")  # fmt: skip
    told = run("infer", tmp_path / "x/model.onnx", trained / "data", "--save_dir", tmp_path / "engine",
               "--threads", 1, "--benchmark", "--repeat", 2, "--engine", "onnxruntime")  # fmt: skip
    assert "peak memory" in told
    masks = [np.asarray(Image.open(tmp_path / kind / "pseudo_color_prediction/eye.png"))
             for kind in ("torch", "engine")]  # fmt: skip
    assert (masks[0] == masks[1]).mean() > 0.99
    record = json.loads((tmp_path / "engine/infer.json").read_text())
    assert record["images"] == 1
    assert record["latency_ms"]["median"] > 0


def test_deploy_yaml_alone_runs_its_file(trained, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained / "quant", folder, ignore=shutil.ignore_patterns("iter_*", "best_model"))
    image = trained / "data/eye.png"
    named = ["--config", folder / "deploy.yaml"]
    for words in ([*named, "--image_path", image], [folder / "model_int8.onnx", image], [*named, image]):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        run("infer", *words, "--save_dir", tmp_path / "out")
        assert (tmp_path / "out/pseudo_color_prediction/eye.png").is_file()
    (folder / "deploy.yaml").write_text("Deploy: {transforms: [{type: Normalise}]}")
    with pytest.raises(ConfigError, match=r"deploy.yaml:1: Deploy.transforms.0: unknown transform 'Normalise'"):
        raise invoke("infer", folder / "model_int8.onnx", image).exception


def test_quantized_weights_are_no_start_of_another_training(trained, tmp_path):
    weights = trained / "quant/best_model/model.pth"
    for verb in (["qat"], ["prune", "--pruning_ratio", 0.2], ["quant", "--retraining_iters", 1]):
        done = invoke(
            *verb, "--config", trained / "config.yml", "--model_path", weights, "--save_dir", tmp_path / "n"
        )
        assert isinstance(done.exception, CheckpointError)
        assert "start from float ones" in str(done.exception)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--aug_pred --scales 0.75 1.0 1.25 --flip_horizontal", "--scales 0.75,1.0,1.25 --flip"),
        ("--is_slide --crop_size 32 32 --stride 16 16", "--crop-size 32,32 --stride 16,16"),
    ],
)
def test_numbers_with_blanks_say_what_numbers_with_commas_say(trained, tmp_path, theirs, ours):
    masks = []
    for name, words in (("a", theirs), ("b", ours)):
        run("predict", "--config", trained / "config.yml", "--weights", trained / "fp32/best_model/model.pth",
            "--images", trained / "data", "--save_dir", tmp_path / name, *words.split())  # fmt: skip
        masks.append(np.asarray(Image.open(tmp_path / name / "pseudo_color_prediction/eye.png")))
    assert (masks[0] == masks[1]).all()


def test_colours_of_classes_are_as_asked(trained, tmp_path):
    base = ("predict", "--config", trained / "config.yml", "--weights", trained / "fp32/best_model/model.pth",
            "--images", trained / "data", "--save_dir", tmp_path)  # fmt: skip
    run(*base, "--custom_color", 10, 20, 30, 200, 100, 50)
    pixels = np.asarray(Image.open(tmp_path / "pseudo_color_prediction/eye.png").convert("RGB")).reshape(-1, 3)
    assert {tuple(pixel) for pixel in pixels.tolist()} <= {(10, 20, 30), (200, 100, 50)}
    with pytest.raises(ConfigError, match="red, green and blue"):
        raise invoke(*base, "--custom_color", 10, 20).exception


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("--scales 1 0.5 x --threads 1 2", "--scales 1,0.5 x --threads 1 2"),
        ("--custom_color 1 2 3 --crop-size 4 5", "--custom_color 1,2,3 --crop-size 4,5"),
        ("--mean -0.5 1e-3 -c", "--mean -0.5,1e-3 -c"),
    ],
)
def test_only_numbers_behind_their_options_are_joined(given, wanted):
    assert joined(given.split()) == wanted.split()
