"""The loop on a tiny task: learning, exact resume after a kill, two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.errors import CheckpointError, ConfigError, QuantrimError
from quantrim.vision.data.color import Normalize, RandomNoise
from quantrim.vision.data.datasets import Arrays, IterationSampler, VisionData
from quantrim.vision.data.geometry import RandomHorizontalFlip
from quantrim.vision.evaluate import evaluate, torch_predictor
from quantrim.vision.losses import cross_entropy
from quantrim.vision.schedules import polynomial
from quantrim.vision.train import TrainSettings, train

SCRIPT = Path(__file__)


def data(seed: int = 0) -> VisionData:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 64)
    images = generator.integers(0, 120, (64, 8, 8, 3)) + labels[:, None, None, None] * 100
    transforms = (RandomHorizontalFlip(), RandomNoise(), Normalize())
    return VisionData(Arrays(images.astype(np.uint8), labels), "classification", 2, transforms, seed)


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
                          nn.Linear(144, 2))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, polynomial(40))


def run(folder, *, iterations=40, resume=None, delay=0.0, progress=False, **changes):
    model, optimizer, scheduler = parts()
    settings = TrainSettings(iterations, batch_size=8, save_interval=5, log_iters=1, best_key="top1",
                             **{"device": "cpu", **changes})  # fmt: skip
    return train(
        model, settings, data(), folder, loss_fn=cross_entropy, optimizer=optimizer, scheduler=scheduler,
        validate=lambda m: evaluate(torch_predictor(m), data()), resume=resume, progress=progress,
        on_iteration=lambda i, m: time.sleep(delay),
    )  # fmt: skip


def kill_at_iteration_15(folder: Path, **environment: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    deadline = time.time() + 90
    while not (folder / "iter_15" / "state.pth").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "run.json").exists()


def losses_of(folder) -> dict[int, float]:
    history = json.loads((Path(folder) / "run.json").read_text())["result"]["history"]
    return {entry["iteration"]: entry["loss"] for entry in history if "loss" in entry}


def test_it_learns_keeps_the_best_and_only_the_newest_checkpoints(tmp_path):
    result = run(tmp_path, keep_checkpoint_max=2)
    assert result.best_metric > 0.9
    assert sorted(p.name for p in tmp_path.glob("iter_*")) == ["iter_35", "iter_40"]
    torch.load(result.best_weights, weights_only=True)


def test_a_killed_run_resumes_with_the_losses_of_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole")
    kill_at_iteration_15(tmp_path / "cut")
    run(tmp_path / "cut", resume=tmp_path / "cut")
    whole, cut = losses_of(tmp_path / "whole"), losses_of(tmp_path / "cut")
    assert set(whole) == set(cut)
    for iteration, loss in whole.items():
        assert cut[iteration] == pytest.approx(loss, rel=1e-5), iteration


def test_a_killed_run_with_averaged_weights_resumes_to_the_same_ones(tmp_path):
    run(tmp_path / "whole", ema_decay=0.8)
    kill_at_iteration_15(tmp_path / "cut", EMA="0.8")
    run(tmp_path / "cut", ema_decay=0.8, resume=tmp_path / "cut")
    for name in ("average.pth", "model.pth"):
        whole, cut = (
            torch.load(tmp_path / run_ / "iter_40" / name, weights_only=True) for run_ in ("whole", "cut")
        )
        for key, value in whole.items():
            torch.testing.assert_close(cut[key], value, rtol=1e-5, atol=1e-7)


def test_resuming_with_averages_from_a_run_without_says_what_to_do(tmp_path):
    run(tmp_path, iterations=5)
    with pytest.raises(CheckpointError, match="Resume without EMA"):
        run(tmp_path, ema_decay=0.9, resume=tmp_path)


def test_a_log_file_gets_plain_lines_with_loss_rate_pace_and_time_left(tmp_path, capfd):
    run(tmp_path, iterations=12, progress=True)
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len([line for line in lines if line.startswith("[TRAIN]")]) == 12
    assert re.fullmatch(
        r"\[TRAIN\] epoch: 2, iter: 9/12, loss: \d+\.\d{4}, lr: 0\.\d{6}, batch_cost: \d\.\d{4}, "
        r"reader_cost: \d\.\d{5}, ips: \d+\.\d{4} samples/sec \| ETA \d:\d\d:\d\d",
        next(line for line in lines if "iter: 9/" in line),
    )
    assert sum("best top1" in line for line in lines) == 3


def test_a_batch_of_one_behind_global_pooling_is_a_clear_error(tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match=r"batch_size 1: .*2 or more"):
        train(model, TrainSettings(3, 1, device="cpu"), data(), tmp_path, loss_fn=cross_entropy,
              optimizer=optimizer, scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
              progress=False)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_autocast_leaves_the_module_with_its_own_forward(tmp_path):
    model, optimizer, scheduler = parts()
    train(model, TrainSettings(2, 4, device="cpu", amp=True), data(), tmp_path, loss_fn=cross_entropy,
          optimizer=optimizer, scheduler=scheduler, progress=False)  # fmt: skip
    assert model(torch.zeros(1, 3, 8, 8)).dtype == torch.float32
    assert "forward" not in vars(model)


def test_resuming_from_nothing_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run(tmp_path / "a", resume=tmp_path)


def test_a_nan_loss_stops_the_run_and_says_where(tmp_path):
    model, optimizer, scheduler = parts()
    with pytest.raises(QuantrimError, match="loss is nan at iteration 1"):
        train(model, TrainSettings(3, 4, log_iters=1, device="cpu"), data(), tmp_path,
              loss_fn=lambda out, y: out.sum() * float("nan"), optimizer=optimizer, scheduler=scheduler,
              progress=False)  # fmt: skip


def test_the_moving_average_of_the_weights_is_what_is_kept(tmp_path):
    result = run(tmp_path, iterations=10, ema_decay=0.5)
    best = torch.load(result.best_weights, weights_only=True)
    last = torch.load(tmp_path / "iter_10" / "model.pth", weights_only=True)
    assert not torch.equal(best["0.weight"], last["0.weight"])


def test_two_processes_see_each_sample_once_an_epoch():
    one, two = (IterationSampler(20, 5, 2, seed=3, rank=rank, world=2) for rank in (0, 1))
    seen = [index for sampler in (one, two) for batch in sampler for _, index in batch]
    assert sorted(seen) == list(range(20))


def test_training_on_two_processes_keeps_their_weights_equal(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29611",
               str(SCRIPT), str(tmp_path / "ddp")]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "QUICK": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sums = sorted((tmp_path / "ddp").glob("sum_*"))
    assert len(sums) == 2
    assert sums[0].read_text() == sums[1].read_text()


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    if os.environ.get("QUICK"):
        model, optimizer, scheduler = parts()
        train(model, TrainSettings(6, 4, save_interval=6, device="cpu"), data(), out, loss_fn=cross_entropy,
              optimizer=optimizer, scheduler=scheduler, progress=False)  # fmt: skip
        total = sum(p.double().sum().item() for p in model.parameters())
        out.mkdir(parents=True, exist_ok=True)
        (out / f"sum_{os.environ['RANK']}").write_text(f"{total:.12f}")
    else:
        run(out, delay=0.1, ema_decay=float(os.environ["EMA"]) if "EMA" in os.environ else None)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("state.pth", b"", "the file is empty"),
        ("state.pth", None, "damaged or cut off"),
        ("model.pth", b"junk", "not a weight file"),
    ],
)
def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path, name, content, words):
    run(tmp_path, iterations=2)
    path = tmp_path / "iter_2" / name
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(CheckpointError, match=words) as caught:
        run(tmp_path, iterations=4, resume=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_that_goes_on_in_another_folder_takes_its_best_weights_along(tmp_path):
    run(tmp_path / "a", iterations=2)
    (tmp_path / "a" / "iter_of_something_else").mkdir()
    result = run(tmp_path / "b", iterations=2, resume=tmp_path / "a")
    assert Path(result.best_weights).read_bytes() == (tmp_path / "a" / "best_model" / "model.pth").read_bytes()


def test_an_unknown_device_and_a_folder_that_cannot_be_written_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match="device 'gpu'"):
        run(tmp_path, iterations=2, device="gpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantrimError, match="can't be written"):
        run(tmp_path / "file" / "x", iterations=2)


def test_resuming_clears_what_a_killed_run_left_half_written(tmp_path):
    run(tmp_path, iterations=2)
    stale = tmp_path / "iter_2" / ".model-abcdefgh.pth"
    stale.write_bytes(b"half")
    run(tmp_path, iterations=4, resume=tmp_path)
    assert not stale.exists()


def test_a_full_disk_is_one_clear_line_and_leaves_no_weights(tmp_path, monkeypatch):
    def full(path: Path, *arguments, **named):
        if path.suffix == ".pth":
            raise OSError(28, "No space left on device")
        return opened(path, *arguments, **named)

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(QuantrimError, match=r"model\.pth: can't be written \(No space left on device\)"):
        run(tmp_path, iterations=2)
    assert not list(tmp_path.rglob("*.pth"))
