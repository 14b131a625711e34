"""Checkpoints of a training run: ``iter_N`` folders that are complete or not there."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from quantrim.checkpoints import load_plain
from quantrim.errors import CheckpointError, first_line
from quantrim.files import atomic_path, validated

#: No rate, count or moment of a run is larger; NaN is not smaller.
_LARGEST = 1e30
_MEND = "Resume from an older iter_N, or start from its model.pth as weights."


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


class _Progress(BaseModel):
    iteration: Annotated[int, Field(ge=0, le=10**12)]
    best_metric: float | None = None
    best_iteration: Annotated[int, Field(ge=0)] | None = None
    history: list[dict[str, float | list[float]]]  # a metric, or one value a class


class _Stored(BaseModel):
    """state.pth."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    progress: _Progress
    torch_rng: Tensor


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

    Rates and the other settings of the optimizer are those asked for now, as if the run had begun with them:
    the checkpoint gives the optimizer's memory and how far the schedule is.

    Raises:
        CheckpointError: a file is damaged or belongs to another model, or the averaged weights are missing.
    """
    try:
        _load_weights(model, folder / "model.pth")
        path = folder / "state.pth"
        saved = validated(_Stored, load_plain(path), path, _MEND)
        _require_alike(saved.scheduler, scheduler.state_dict(), "scheduler")
        state = RunState(**saved.progress.model_dump())
        _load_memory(optimizer, saved.optimizer)
        _forward(scheduler, optimizer, saved.scheduler, state.iteration)
        torch.set_rng_state(saved.torch_rng)
        if average is not None:
            _load_average(average, folder)
    except CheckpointError:
        raise
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: can't resume from it: {first_line(error)} ({type(error).__name__}). "
            "Resume from an older iter_N, or start from its model.pth as weights."
        ) from error
    return state


def _load_memory(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Take an optimizer's state (momentum) over, and leave the settings of its groups alone."""
    asked = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    _require_fitting(optimizer, saved["param_groups"])
    for group, settings in zip(optimizer.param_groups, asked, strict=True):
        group.update(settings)


def _forward(scheduler: LRScheduler, optimizer: Optimizer, saved: dict[str, Any], iteration: int) -> None:
    """Bring a schedule to an iteration: by its own rule where it has one of iterations, else as saved."""
    if not isinstance(scheduler, LambdaLR):
        scheduler.load_state_dict(saved)
        rates = scheduler.get_last_lr()
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < _LARGEST:
                raise ValueError(f"scheduler: a learning rate is {str(rate)[:60]!r}")
    else:
        rules = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * rule(iteration) for base, rule in rules]
        scheduler.last_epoch, scheduler._step_count, scheduler._last_lr = iteration, iteration + 1, rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = float(rate)


def _require_alike(found: Mapping[str, Any], like: Mapping[str, Any], what: str) -> None:
    """Refuse plain values of another kind than the object has now, such as text where it counts."""
    for key, value in found.items():
        if key in like and isinstance(like[key], int | float):
            number = isinstance(value, int | float) and abs(value) < _LARGEST
            if not number or (key == "last_epoch" and value < 0):
                raise ValueError(f"{what}: {key} is {str(value)[:60]!r}")


def _require_fitting(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse moments of other shapes than the weights, and options of other kinds than the optimizer has."""
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        if missing := optimizer.defaults.keys() - saved.keys():
            raise ValueError(f"optimizer: {sorted(missing)[0]} is missing")
        _require_alike(saved, {**optimizer.defaults, "lr": 0.0}, "optimizer")
        for weight in group["params"]:
            for name, value in optimizer.state.get(weight, {}).items():
                number = name == "step" and isinstance(value, int | float)
                fits = isinstance(value, Tensor) and (not value.dim() or value.shape == weight.shape)
                if not (number or fits or value is None):
                    raise ValueError(
                        f"optimizer: {name} does not fit its weight of shape {tuple(weight.shape)}"
                    )


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
