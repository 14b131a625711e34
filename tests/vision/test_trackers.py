"""Trackers of experiments, and the ways of training that accelerate offers and this loop refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from quantrim.errors import ConfigError
from quantrim.vision.data.datasets import Arrays, VisionData
from quantrim.vision.losses import cross_entropy
from quantrim.vision.train import TrainSettings, require_trackers, require_whole, train


def test_losses_and_settings_reach_a_tracker(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
    data = VisionData(Arrays(images, np.arange(8) % 2), "classification", 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    result = train(
        model,
        TrainSettings(4, batch_size=4, log_iters=2, best_key="top1", device="cpu", trackers=("tensorboard",)),
        data, tmp_path, loss_fn=cross_entropy, optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer), progress=False,
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "quantrim")).Reload()
    told = {entry.step: entry.value for entry in events.Scalars("Train/loss")}
    kept = {entry["iteration"]: entry["loss"] for entry in result.history if "loss" in entry}
    assert told == pytest.approx(kept)
    assert sorted(told) == [2, 4]


def test_an_unknown_or_missing_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"tracker 'wandbb'.*wandb"):
        require_trackers(("wandbb",))
    with pytest.raises(ConfigError, match="Install it with: pip install aim"):
        require_trackers(("aim",))


def test_split_weights_are_refused():
    with pytest.raises(ConfigError, match="FSDP, which splits the weights"):
        require_whole(DistributedType.FSDP)
    require_whole(DistributedType.MULTI_CPU)
