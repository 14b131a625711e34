"""Detectors in the one training loop: resumed with the same losses, and by two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantrim.recipes.runs import train_config
from quantrim.vision.config import load_config
from quantrim.vision.train import TrainSettings

CONFIG = """
batch_size: 2
iters: 4
train_dataset:
  type: SyntheticScenes
  count: 8
  size: 64
  batch_sides: [64, 96]
  transforms:
    - {type: Mosaic, target_size: [64, 64], prob: 0.5}
    - {type: MixUp}
    - {type: RandomHorizontalFlip}
    - {type: Normalize}
val_dataset: {type: SyntheticScenes, count: 2, size: 64, mode: val, transforms: [{type: Normalize}]}
optimizer: {type: adamw}
lr_scheduler: {type: CosineAnnealingDecay, learning_rate: 0.001}
test_config: {metric: VOC}
model: {type: YOLOX, depth: 0.1, width: 0.125, depthwise: true}
"""


def losses(folder: Path) -> dict[int, float]:
    history = json.loads((folder / "run.json").read_text())["result"]["history"]
    return {entry["iteration"]: entry["loss"] for entry in history if "loss" in entry}


def test_a_resumed_detector_has_the_losses_of_an_uninterrupted_one(tmp_path):
    (tmp_path / "c.yml").write_text(CONFIG)
    config = load_config(tmp_path / "c.yml")
    settings = TrainSettings(4, 2, 2, log_iters=1, best_key="mAP", device="cpu", ema_decay=0.9)
    train_config(config, settings, tmp_path / "whole", progress=False)
    again = tmp_path / "again"
    train_config(config, settings, again, resume=tmp_path / "whole" / "iter_2", progress=False)
    whole, rest = losses(tmp_path / "whole"), losses(again)
    assert {3, 4} <= set(rest)
    for iteration in (3, 4):
        assert rest[iteration] == pytest.approx(whole[iteration], rel=1e-5)


@pytest.mark.timeout(300)
def test_two_processes_train_a_detector(tmp_path):
    (tmp_path / "c.yml").write_text(CONFIG)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617",
               "-m", "quantrim", "train", "-c", str(tmp_path / "c.yml"), "--save-dir", str(tmp_path / "run"),
               "--log-iters", "1", "--save-interval", "4", "--device", "cpu"]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["result"]["iterations"] == 4
    assert (tmp_path / "run" / "best_model" / "model.pth").is_file()
