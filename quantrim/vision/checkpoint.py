"""Checkpoints of a training run: ``iter_N`` folders that are complete or not there."""

from __future__ import annotations

import io
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from quantrim.checkpoints import load_plain
from quantrim.errors import CheckpointError
from quantrim.files import atomic_path


@dataclass
class RunState:
    """How far a run is.

    Attributes:
        iteration: iterations done.
        best_metric: best value of the metric that decides, None before the first validation.
        best_iteration: where it was reached.
        history: one entry a log line or validation.
    """

    iteration: int = 0
    best_metric: float | None = None
    best_iteration: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state_dict atomically."""
    save_plain(model.state_dict(), path)


def save_plain(content: Any, path: Path) -> None:
    """``torch.save`` that is atomic, and says so when the disk is full.

    Raises:
        QuantrimError: the file can't be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)  # straight into a file, a full disk ends in an assertion about positions
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    state: RunState,
    average: nn.Module | None = None,
) -> None:
    """Write ``model.pth``, ``average.pth`` and, last, ``state.pth``: a folder with the latter is complete.

    Args:
        folder: ``iter_N``.
        model: the weights that are trained.
        optimizer: its state goes with them.
        scheduler: likewise.
        state: likewise.
        average: model that holds the moving average of the weights, where there is one.
    """
    save_weights(model, folder / "model.pth")
    if average is not None:
        save_weights(average, folder / "average.pth")
    content = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "progress": asdict(state),
        "torch_rng": torch.get_rng_state(),
    }
    save_plain(content, folder / "state.pth")


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    average: nn.Module | None = None,
) -> RunState:
    """Restore a run from a folder that :func:`newest` found.

    Raises:
        CheckpointError: a file is damaged or belongs to another model, or the averaged weights are missing.
    """
    try:
        _load_weights(model, folder / "model.pth")
        saved = load_plain(folder / "state.pth")
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        state = RunState(**saved["progress"])
        torch.set_rng_state(saved["torch_rng"])
        if average is not None:
            _load_average(average, folder)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: can't resume from it: {str(error).splitlines()[0]} ({type(error).__name__}). "
            "Resume from an older iter_N, or start from its model.pth as weights."
        ) from error
    return state


def _load_average(average: nn.Module, folder: Path) -> None:
    path = folder / "average.pth"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: holds no averaged weights (average.pth); the run had no EMA. Resume without EMA, or "
            "start a new run from its model.pth as weights."
        )
    _load_weights(average, path)


def _load_weights(model: nn.Module, path: Path) -> None:
    model.load_state_dict(load_plain(path))


def newest(path: str | Path) -> Path:
    """The checkpoint itself, or the newest complete one of a save folder.

    Raises:
        CheckpointError: nothing complete is there.
    """
    folder = Path(path)
    if (folder / "state.pth").is_file():
        return folder
    complete = [found for found in checkpoints(folder) if (found / "state.pth").is_file()]
    if not complete:
        raise CheckpointError(f"{path}: no complete checkpoint (iter_N with state.pth) to resume from.")
    return complete[-1]


def clear_unfinished(save_dir: Path) -> None:
    """Remove the temporary files that a killed run left in its folders."""
    for stale in save_dir.glob("*/.*.pth"):
        stale.unlink()


def carry_best(source: Path, target: Path) -> None:
    """Copy the best weights of a run that goes on in another folder, where they may stay the best."""
    best = source / "best_model" / "model.pth"
    if best.is_file() and not (target / "best_model" / "model.pth").is_file():
        with atomic_path(target / "best_model" / "model.pth") as temporary:
            shutil.copyfile(best, temporary)


def checkpoints(folder: Path) -> list[Path]:
    """The ``iter_N`` folders, oldest first."""
    numbered = (path for path in folder.glob("iter_*") if path.name.removeprefix("iter_").isdecimal())
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("iter_")))


def drop_old(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints; 0 or less keeps all."""
    if keep > 0:
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
