"""The verb: trained weights in, smaller retrained model out, in a folder that other verbs take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.engines import open_session
from quantrim.pruning import load_pruned
from quantrim.recipes.loading import load
from quantrim.vision.config import load_config

CONFIG = """
batch_size: 2
iters: 2
train_dataset: {type: SyntheticOpticDisc, count: 8, size: 64, mode: train, transforms: [{type: Normalize}]}
val_dataset: {type: SyntheticOpticDisc, count: 4, size: 64, mode: val, transforms: [{type: Normalize}]}
optimizer: {type: sgd, momentum: 0.9}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.01}
loss: {types: [{type: CrossEntropyLoss}], coef: [1, 0.4]}
model: {type: FastSCNN}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trained")
    config, weights = folder / "config.yml", folder / "model.pth"
    config.write_text(CONFIG)
    torch.manual_seed(0)
    torch.save(load(load_config(config), None).model.state_dict(), weights)
    return config, weights


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    return result.exit_code, str(result.exception) if result.exception else result.output


def test_prune_writes_a_model_that_loads_and_runs(trained: tuple[Path, Path], tmp_path: Path):
    config, weights = trained
    code, text = run(
        "prune", "-c", config, "--weights", weights, "--pruning-ratio", 0.3, "--retraining-iters", 2,
        "--save-dir", tmp_path, "--samples", 4, "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert code == 0, text
    value = json.loads((tmp_path / "result.json").read_text())
    assert value["flops"]["after"] <= 0.7 * value["flops"]["before"]
    assert value["requested_ratio"] == 0.3 <= value["achieved_ratio"]
    assert value["params"]["after"] < value["params"]["before"]
    assert set(value["latency_ms"]) == {"before", "after"}
    assert set(value["metric"]) == {"before", "pruned", "retrained"}
    assert value["metric"][value["chosen"]] == max(value["metric"]["pruned"], value["metric"]["retrained"])
    assert {"layer", "reason"} <= set(value["frozen"][0])
    ready = load(load_config(config), None)
    module = load_pruned(ready.model, tmp_path).eval()
    images = ready.data[0][0][None]
    with torch.no_grad():
        expected = module(images)[0].numpy()
    (port,) = (session := open_session(tmp_path / "model.onnx", "onnxruntime")).inputs
    (got,) = session.run({port.name: images.numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(expected), rtol=1e-3, atol=1e-4)
    for name in ("sensitivity.json", "sensitivity.svg", "deploy.yaml", "prune.json"):
        assert (tmp_path / name).is_file()


def test_rounds_and_latency_work_without_sensitivity(trained: tuple[Path, Path], tmp_path: Path):
    config, weights = trained
    code, text = run(
        "prune", "-c", config, "--weights", weights, "--pruning-ratio", 0.3, "--retraining-iters", 2,
        "--steps", 2, "--save-dir", tmp_path, "--samples", 4, "--no-sensitivity", "--no-distill",
        "--criterion", "taylor",
    )  # fmt: skip
    assert code == 0, text
    value = json.loads((tmp_path / "prune.json").read_text())
    assert 0.3 <= 1 - value["flops"]["after"] / value["flops"]["before"] < 0.4
    load_pruned(load(load_config(config), None).model, tmp_path)


def test_dry_run_only_looks(trained: tuple[Path, Path], tmp_path: Path):
    config, weights = trained
    code, text = run("prune", "-c", config, "--weights", weights, "--dry-run", "--json", tmp_path / "s.json")
    assert code == 0, text
    value = json.loads((tmp_path / "s.json").read_text())["survey"]
    assert value["prunable"]
    assert 0 < value["largest_ratio"] < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pruning-ratio", "1.5"], "in (0, 1)"),
        ([], "either --pruning-ratio"),
        (["--pruning-ratio", "0.3", "--channel-ratio", "0.3"], "either --pruning-ratio"),
        (["--pruning-ratio", "0.3", "--objective", "latancy"], "did you mean 'latency'"),
        (["--pruning-ratio", "0.3", "--criterion", "l3"], "unknown criterion"),
        (["--pruning-ratio", "0.3", "--workers", "x"], "--workers"),
        (["--pruning-ratio", "0.99"], "can't be reached"),
    ],
)
def test_bad_requests_fail_in_one_line(
    trained: tuple[Path, Path], tmp_path: Path, words: list[str], message: str
):
    config, weights = trained
    code, text = run(
        "prune", "-c", config, "--weights", weights, "--save-dir", tmp_path / "out", "--samples", 4,
        "--no-sensitivity", *words,
    )  # fmt: skip
    assert code == 1
    assert message in text
    assert not (tmp_path / "out" / "model.pth").exists()


def test_a_folder_that_cannot_be_written_is_refused_at_once(trained: tuple[Path, Path]):
    config, weights = trained
    code, text = run(
        "prune", "-c", config, "--weights", weights, "--pruning-ratio", 0.3, "--save-dir", weights / "inside"
    )
    assert code == 1
    assert "can't be written" in text


def test_a_forecast_says_whether_the_ratio_is_within_reach(trained: tuple[Path, Path], tmp_path: Path):
    config, weights = trained
    words = ("prune", "-c", config, "--weights", weights, "--dry-run", "--samples", 4)
    code, text = run(*words, "--pruning-ratio", 0.99)
    assert code == 0
    assert "ratio 0.99 of flops: out of reach" in text
    assert "evaluations of 4 images, about" in text
    latency = (
        "--objective",
        "latency",
        "--engine",
        "onnxruntime",
        "--no-sensitivity",
        "--json",
        tmp_path / "f.json",
    )
    code, text = run(*words, "--pruning-ratio", 0.2, *latency)
    assert code == 0, text
    assert "ratio 0.2 of latency: within reach" in text
    assert "timing layers" in text  # on stderr
    value = json.loads((tmp_path / "f.json").read_text())
    now, least = value["latency_ms"]["now"], value["latency_ms"]["least"]
    assert 0 < least < now
    assert value["largest_ratio"] == pytest.approx(1 - least / now)


def test_what_was_pruned_goes_on_through_the_other_verbs(trained: tuple[Path, Path], tmp_path: Path):
    config, weights = trained
    quick = ("--retraining-iters", 0, "--samples", 4, "--no-sensitivity", "--save-dir")
    once, twice = tmp_path / "once", tmp_path / "twice"
    steps = (
        ("prune", "-c", config, "--weights", weights, "--pruning-ratio", 0.3, *quick, once),
        ("prune", "-c", config, "--weights", once / "model.pth", "--pruning-ratio", 0.3, *quick, twice),
        ("train", "-c", config, "--weights", twice / "model.pth", "--iters", 1, "--save-dir", tmp_path / "t"),
        ("evaluate", "-c", config, "--weights", twice / "model.pth"),
        ("export", "-c", config, "--weights", twice / "model.pth", "-o", tmp_path / "e.onnx"),
        ("ptq", twice / "model.onnx", "-o", tmp_path / "int8.onnx", "--data", config, "--samples", 4,
         "--target", "openvino", "--accept", "any"),  # two iterations make no model to be faithful to
        ("qat", "-c", config, "--weights", twice / "model.pth", "--iters", 1, "--save-dir", tmp_path / "q"),
    )  # fmt: skip
    for words in steps:
        code, text = run(*words)
        assert code == 0, (words, text)
    first, second = (json.loads((folder / "prune.json").read_text()) for folder in (once, twice))
    assert second["flops"]["before"] == pytest.approx(first["flops"]["after"])
    module = load_pruned(load(load_config(config), None).model, twice)
    assert sum(p.numel() for p in module.parameters()) == second["params"]["after"]


def test_an_interrupted_run_goes_on_with_its_retraining(trained: tuple[Path, Path], tmp_path: Path):
    config, weights = trained
    words = ("prune", "-c", config, "--weights", weights, "--pruning-ratio", 0.3, "--samples", 4,
             "--no-sensitivity", "--save-dir", tmp_path, "--save-interval", 1)  # fmt: skip
    assert run(*words, "--retraining-iters", 1)[0] == 0
    before = json.loads((tmp_path / "plan.json").read_text())["kept"]
    told = json.loads((tmp_path / "prune.json").read_text())
    code, text = run(*words, "--retraining-iters", 2, "--resume")
    assert code == 0, text
    assert json.loads((tmp_path / "plan.json").read_text())["kept"] == before
    again = json.loads((tmp_path / "prune.json").read_text())
    assert all(again[key] == told[key] for key in ("groups", "frozen", "flops", "params", "achieved_ratio"))
    assert (tmp_path / "retraining" / "round_1" / "iter_2" / "state.pth").is_file()
