"""The verbs qat and quant on a tiny data set: from FP32 weights to a judged INT8 file."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import yaml
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.cli.qat import settings_of
from quantrim.errors import CheckpointError, ConfigError
from quantrim.qat import QAT, method
from quantrim.recipes.qat import QatRecipe, quantized_optimizer, train_quantized
from quantrim.vision.config import build_data, build_model, load_config
from quantrim.vision.train import TrainSettings


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration, 64 bright or dark pictures, and FP32 weights."""
    root = tmp_path_factory.mktemp("recipe")
    generator = np.random.default_rng(0)
    for name, count in (("train", 64), ("t10k", 24)):
        labels = generator.integers(0, 10, count)
        pictures = generator.integers(0, 60, (count, 16, 16)) + 19 * labels[:, None, None]
        write_idx(root / f"{name}-images-idx3-ubyte.gz", pictures)
        write_idx(root / f"{name}-labels-idx1-ubyte.gz", labels)
    normalize = [{"type": "Normalize", "mean": [0.5], "std": [0.3]}]
    data = {"type": "FashionMNIST", "dataset_root": str(root), "transforms": normalize}
    values = {
        "batch_size": 8,
        "iters": 6,
        "train_dataset": data,
        "val_dataset": data,
        "optimizer": {"type": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.1},
        "model": {"type": "MobileNetV1", "scale": 0.125, "in_channels": 1, "small_input": True},
    }
    (root / "config.yml").write_text(yaml.safe_dump(values))
    torch.manual_seed(0)
    torch.save(build_model(load_config(root / "config.yml"), 10).state_dict(), root / "fp32.pth")
    return root


def settings(iterations: int = 4, **changes: object) -> TrainSettings:
    given = {"batch_size": 8, "save_interval": 2, "best_key": "top1", "device": "cpu"}
    return TrainSettings(iterations, **{**given, **changes})  # type: ignore[arg-type]


def test_the_command_trains_exports_and_judges(folder: Path, tmp_path: Path):
    arguments = ["qat", "-c", str(folder / "config.yml"), "--weights", str(folder / "fp32.pth")]
    arguments += [
        "--save-dir",
        str(tmp_path / "run"),
        "--iters",
        "4",
        "--save-interval",
        "2",
        "--method",
        "pact",
    ]
    arguments += ["--distill", "--output-op", "argmax", "--samples", "16", "--json", str(tmp_path / "qat.json")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((tmp_path / "qat.json").read_text())
    assert {"fp32", "ptq", "qat", "exported", "engine"} <= report["metrics"].keys()
    assert report["metrics"]["exported"] == max(report["metrics"]["ptq"], report["metrics"]["qat"])
    assert report["metrics"]["engine"] == pytest.approx(report["metrics"]["exported"], abs=0.05)
    assert report["verdict"]["int8_mac_share"] > 0.95
    assert report["equal_codes"] > 0.9999
    assert report["size_mb"].keys() == {"fp32", "int8"}
    assert "on the engine" in result.output
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model_int8.onnx", "deploy.yaml", "qat.json", "run.json", "iter_4", "best_model"} <= names
    session = ort.InferenceSession(tmp_path / "run" / "model_int8.onnx")
    classes = session.run(None, {"image": np.zeros((3, 1, 16, 16), np.float32)})[0]
    assert (classes.shape, classes.dtype) == ((3,), np.int64)


@pytest.mark.slow
def test_the_one_step_command_takes_paddlesegs_option_names(folder: Path, tmp_path: Path):
    arguments = [
        "quant",
        "--config",
        str(folder / "config.yml"),
        "--retraining_iters",
        "2",
        "--batch_size",
        "4",
    ]
    arguments += ["--model_path", str(folder / "fp32.pth"), "--learning_rate", "0.001", "--num_workers", "0"]
    result = CliRunner().invoke(app, [*arguments, "--save_dir", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert (tmp_path / "model_int8.onnx").is_file()
    assert CliRunner().invoke(app, ["quant", "--retraining_iters", "2"]).exit_code == 2


def test_an_interrupted_run_goes_on_where_it_stopped(folder: Path, tmp_path: Path):
    """PaddleSeg's qat_train parses --resume_model and ignores it."""
    config = load_config(folder / "config.yml")
    recipe = QatRecipe(config=method("lsq", freeze_ranges_at=3, freeze_batch_norm_at=3), engines=(), samples=8)
    given = (config, folder / "fp32.pth")
    whole = train_quantized(*given, settings(4), tmp_path / "whole", recipe, progress=False)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        train_quantized(
            *given, settings(4), tmp_path / "half", recipe, resume=tmp_path / "half", progress=False
        )
    shutil.copytree(tmp_path / "whole" / "iter_2", tmp_path / "half" / "iter_2")
    shutil.copytree(tmp_path / "whole" / "best_model", tmp_path / "half" / "best_model")
    resumed = train_quantized(
        *given, settings(4), tmp_path / "half", recipe, resume=tmp_path / "half", progress=False
    )
    assert resumed.metrics == whole.metrics
    states = [
        torch.load(tmp_path / run / "iter_4" / "model.pth", weights_only=True) for run in ("whole", "half")
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def test_training_that_harms_exports_the_calibrated_state(folder: Path, tmp_path: Path):
    config = load_config(folder / "config.yml", ["lr_scheduler.learning_rate=0.05"])
    trained = tmp_path / "fp32"
    from quantrim.recipes.runs import train_config

    result = train_config(config, settings(60, save_interval=20), trained, progress=False)
    recipe = QatRecipe(engines=(), samples=32, learning_rate=1.0)
    run = train_quantized(config, result.best_weights, settings(1), tmp_path / "qat", recipe, progress=False)
    assert run.metrics["ptq"] > run.metrics["qat"]
    assert run.chosen == "ptq"
    assert run.metrics["exported"] == run.metrics["ptq"]


def test_learned_quantizers_have_optimizer_groups_of_their_own(folder: Path):
    config = load_config(folder / "config.yml")
    data = build_data(config, "val_dataset")
    example = data[0][0][None]
    qat = QAT(build_model(config, 10), example, config=method("pact", learned_rate=5.0))
    optimizer, scheduler = quantized_optimizer(config, qat, 10, None)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.05])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 1e-4]
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(list(qat.module.parameters()))
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[1]["lr"] < 0.05


def test_paddleslim_settings_come_from_a_file(tmp_path: Path):
    path = tmp_path / "qat.yml"
    path.write_text("activation_preprocess_type: PACT\nfor_tensorrt: true\n")
    changes = {"weight_bits": 8, "skip": ("head*",)}
    config, target = settings_of("default", path, **changes)
    assert (config.activation, config.skip, target) == ("pact", ("head*",), "tensorrt")
    with pytest.raises(ConfigError, match="give one of them"):
        settings_of("lsq", path, **changes)
    with pytest.raises(ConfigError, match="no readable YAML"):
        settings_of("default", tmp_path / "missing.yml", **changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lsqq"], "did you mean 'lsq'"),
        (["--quantize", "backbone"], "matches none of the model's parts"),
        (["--skip", "clasifier"], "did you mean 'classifier'"),
        (["--output-op", "max"], "legal: none, argmax, softmax"),
        (["--target", "openvin"], "did you mean 'openvino'"),
        (["--distill-features", "featurs"], "did you mean 'features'"),
    ],
)
def test_wrong_options_are_one_line_errors_and_leave_no_files(
    folder: Path, tmp_path: Path, options: list[str], message: str
):
    arguments = ["qat", "-c", str(folder / "config.yml"), "--weights", str(folder / "fp32.pth"), "--iters", "1"]
    result = CliRunner().invoke(app, [*arguments, "--save-dir", str(tmp_path / "run"), *options])
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_write_one_result(folder: Path, tmp_path: Path):
    launch = ["torch.distributed.run", "--nproc-per-node=2", "--master-port=29613", "-m", "quantrim"]
    options = ["qat", "-c", str(folder / "config.yml"), "--weights", str(folder / "fp32.pth"), "--iters", "4"]
    options += ["--save-interval", "2", "--samples", "16", "--rank-ranges", "max", "--device", "cpu"]
    command = [sys.executable, "-m", *launch, *options, "--save-dir", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "run" / "qat.json").read_text())
    assert report["metrics"]["exported"] == max(report["metrics"]["ptq"], report["metrics"]["qat"])
    assert report["metrics"]["engine"] == pytest.approx(report["metrics"]["exported"], abs=0.05)
    assert done.stdout.count("on the engine") == 1  # rank 0 alone reports
