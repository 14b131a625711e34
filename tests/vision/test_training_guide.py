"""The guide names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.vision.config import build_data, build_loss, build_model, build_optimizer, load_config
from quantrim.vision.data.transforms import TRANSFORMS
from quantrim.vision.schema import DATASETS, LOSSES

GUIDE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [DATASETS, LOSSES, TRANSFORMS])
def test_every_name_of_a_configuration_stands_in_the_guide(names):
    assert [name for name in names if f"`{name}`" not in GUIDE] == []


def test_the_configuration_in_the_guide_trains(tmp_path: Path):
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    path = tmp_path / "config.yml"
    values = yaml.safe_load(block)
    del values["_base_"]
    path.write_text(yaml.safe_dump(values))
    config = load_config(path, ["train_dataset.count=2"])
    data = build_data(config)
    model = build_model(config, data.num_classes)
    optimizer, _ = build_optimizer(config, model)
    assert optimizer.defaults["weight_decay"] == 1e-4
    build_loss(config, data.ignore_index)


@pytest.mark.parametrize("verb", ["train", "evaluate", "export", "predict"])
def test_every_option_of_the_commands_in_the_guide_exists(verb: str):
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "250"}).output
    lines = [line for line in GUIDE.splitlines() if line.startswith(f"quantrim {verb} ")]
    assert lines
    for option in re.findall(r"--[a-z-]+", " ".join(lines)):
        assert option in shown, option


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"type": "StepDecay", "step_size": 4, "gamma": 0.5}, [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]),
        (
            {"type": "PiecewiseDecay", "boundaries": [3, 5], "values": [1.0, 0.3, 0.1]},
            [0.5, 1.0, 1.0, 0.3, 0.3, 0.1],
        ),
    ],
)
def test_warm_up_stands_before_steps_too(tmp_path: Path, schedule: dict, rates: list[float]):
    path = tmp_path / "config.yml"
    values = {
        "batch_size": 1,
        "iters": 9,
        "train_dataset": {"type": "SyntheticOpticDisc", "count": 1, "size": 16},
        "lr_scheduler": {**schedule, "learning_rate": 1.0, "warmup_iters": 2},
        "model": {"type": "FastSCNN"},
    }
    path.write_text(yaml.safe_dump(values))
    optimizer, scheduler = build_optimizer(load_config(path), torch.nn.Linear(1, 1))
    for rate in rates:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        optimizer.step()
        scheduler.step()
