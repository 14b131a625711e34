"""One training loop, for FP32 training, quantization-aware training and retraining after pruning.

A run is a function of its settings: data order and random transforms depend on (seed, epoch, index), the
learning rate on the iteration, and checkpoints hold the rest, so that a run killed at any moment goes on
from its last checkpoint with the losses of a run that was never interrupted.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from quantrim.errors import CheckpointError, QuantrimError
from quantrim.files import atomic_path, write_json
from quantrim.machine import describe_machine
from quantrim.vision.data.datasets import VisionData, training_batches

LossFunction = Callable[[Any, Tensor], Tensor]
Validate = Callable[[nn.Module], Mapping[str, float]]
OnIteration = Callable[[int, nn.Module], None]
#: (outputs of the student, outputs of the teacher) → loss added to the task's own.
Distill = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How long and how to train.

    Attributes:
        iterations: optimizer steps.
        batch_size: samples a step and process.
        save_interval: iterations between checkpoints (and validations).
        keep_checkpoint_max: newest iter_N folders to keep; 0 or less keeps all.
        log_iters: iterations between log lines.
        num_workers: data loading processes.
        seed: of everything random.
        amp: bfloat16 autocast.
        ema_decay: decay of a moving average of the weights, which is then what is validated; None for none.
        best_key: metric that decides which checkpoint is best; larger is better.
        device: "auto", "cpu" or "cuda".
        clip_norm: largest norm of the gradient, None for no limit.
    """

    iterations: int
    batch_size: int = 4
    save_interval: int = 1000
    keep_checkpoint_max: int = 5
    log_iters: int = 10
    num_workers: int = 0
    seed: int = 0
    amp: bool = False
    ema_decay: float | None = None
    best_key: str = "mIoU"
    device: str = "auto"
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a run.

    Attributes:
        iterations: iterations done.
        best_metric: best value of the settings' best_key; None without validation.
        best_iteration: where it was reached.
        best_weights: file of the best (or, without validation, the last) weights.
        history: one entry a log line or validation: iteration, loss, lr, metrics.
        seconds: wall time of this call.
    """

    iterations: int
    best_metric: float | None
    best_iteration: int | None
    best_weights: str
    history: tuple[dict[str, float], ...]
    seconds: float


@dataclass
class _State:
    """What a checkpoint holds beside module, optimizer and scheduler."""

    iteration: int = 0
    best_metric: float | None = None
    best_iteration: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    settings: TrainSettings,
    train_set: VisionData,
    save_dir: str | Path,
    *,
    loss_fn: LossFunction,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    validate: Validate | None = None,
    on_iteration: OnIteration | None = None,
    teacher: nn.Module | None = None,
    distill: Distill | None = None,
    resume: str | Path | None = None,
    use_tensorboard: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a model and keep its best and its newest checkpoints.

    Args:
        model: trained in place; after the call it holds the last weights.
        settings: see :class:`TrainSettings`.
        train_set: pictures.
        save_dir: gets ``iter_N/``, ``best_model/model.pth``, ``run.json`` and TensorBoard's events.
        loss_fn: (model outputs, labels) → scalar.
        optimizer: over the model's parameters.
        scheduler: stepped every iteration.
        validate: module → metrics; called every ``save_interval`` and at the end.
        on_iteration: called before each iteration with its number and the module (QAT freezes there).
        teacher: evaluated on the same batch without gradient.
        distill: loss of (outputs, teacher outputs), added to the task's.
        resume: ``iter_N`` folder, or ``save_dir`` itself for the newest in it.
        use_tensorboard: write PaddleSeg's scalars.
        progress: show a progress bar.

    Raises:
        QuantrimError: the loss is NaN or infinite.
        CheckpointError: the checkpoint to resume from is missing or damaged.
    """
    start = time.perf_counter()
    save_dir = Path(save_dir)
    set_seed(settings.seed)
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision="bf16" if settings.amp else "no")
    state = _State()
    if resume is not None:
        state = load_checkpoint(resume, model, optimizer, scheduler)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on CPUs
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    average = copy.deepcopy(model) if settings.ema_decay else None
    if teacher is not None:
        teacher = teacher.to(accelerator.device).eval()
    writer = _writer(save_dir) if use_tensorboard and accelerator.is_main_process else None
    batches = training_batches(
        train_set,
        settings.batch_size,
        settings.iterations,
        start=state.iteration,
        seed=settings.seed,
        workers=settings.num_workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    wrapped.train()
    with Progress(transient=True, disable=not (progress and accelerator.is_main_process)) as bar:
        task = bar.add_task("training", total=settings.iterations, completed=state.iteration)
        for images, labels in batches:
            if on_iteration is not None:
                on_iteration(state.iteration, model)
            loss = _step(
                accelerator, wrapped, optimizer, images, labels, loss_fn, teacher, distill, settings.clip_norm
            )
            rate = optimizer.param_groups[0]["lr"]
            scheduler.step()
            state.iteration += 1
            if average is not None:
                _follow(average, model, float(settings.ema_decay or 0))
            last = state.iteration == settings.iterations
            if state.iteration % settings.log_iters == 0 or last:
                _log(state, float(loss), rate, writer)
                bar.update(task, description=f"training, loss {float(loss):.4f}")
            if state.iteration % settings.save_interval == 0 or last:
                _checkpoint(accelerator, state, average or model, model, optimizer, scheduler, settings,
                            save_dir, validate, writer)  # fmt: skip
                wrapped.train()
            bar.advance(task)
    result = TrainResult(
        state.iteration,
        state.best_metric,
        state.best_iteration,
        str(save_dir / "best_model" / "model.pth"),
        tuple(state.history),
        time.perf_counter() - start,
    )
    if accelerator.is_main_process:
        record = {
            "settings": asdict(settings),
            "result": asdict(result),
            "machine": describe_machine().to_json(),
        }
        write_json(save_dir / "run.json", record)
    return result


def _step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    loss_fn: LossFunction,
    teacher: nn.Module | None,
    distill: Distill | None,
    clip_norm: float | None,
) -> Tensor:
    """One optimizer step; the detached loss."""
    images = images.to(accelerator.device, memory_format=torch.channels_last)
    labels = labels.to(accelerator.device)
    with accelerator.autocast():
        outputs = model(images)
        loss = loss_fn(outputs, labels)
        if teacher is not None and distill is not None:
            with torch.no_grad():
                target = teacher(images)
            loss = loss + distill(outputs, target)
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    if clip_norm is not None:
        accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.detach()


def _log(state: _State, loss: float, rate: float, writer: Any) -> None:
    if not math.isfinite(loss):
        raise QuantrimError(
            f"loss is {loss} at iteration {state.iteration}. Lower the learning rate, clip the gradient or "
            "check the data; the last checkpoint is unharmed."
        )
    state.history.append({"iteration": state.iteration, "loss": loss, "lr": rate})
    if writer is not None:
        writer.add_scalar("Train/loss", loss, state.iteration)
        writer.add_scalar("Train/lr", rate, state.iteration)


def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's; buffers are copied."""
    with torch.no_grad():
        for kept, new in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(new.detach().to(kept.device), 1 - decay)
        for held, buffer in zip(average.buffers(), model.buffers(), strict=True):
            held.copy_(buffer)


def _checkpoint(
    accelerator: Accelerator,
    state: _State,
    judged: nn.Module,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    settings: TrainSettings,
    save_dir: Path,
    validate: Validate | None,
    writer: Any,
) -> None:
    """Validate, keep the best weights, save everything that a resumed run needs."""
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    best = validate is None
    if validate is not None:
        judged.eval()
        metrics = dict(validate(judged))
        if settings.best_key not in metrics:
            raise QuantrimError(f"validation gives {sorted(metrics)}, but best_key is {settings.best_key!r}.")
        value = float(metrics[settings.best_key])
        state.history.append({"iteration": state.iteration, **metrics})
        if writer is not None:
            for name, metric in metrics.items():
                writer.add_scalar(f"Evaluate/{name}", metric, state.iteration)
        if state.best_metric is None or value > state.best_metric:
            state.best_metric, state.best_iteration, best = value, state.iteration, True
    if best:
        save_weights(judged, save_dir / "best_model" / "model.pth")
    save_checkpoint(save_dir / f"iter_{state.iteration}", model, optimizer, scheduler, state)
    _drop_old(save_dir, settings.keep_checkpoint_max)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state_dict atomically."""
    with atomic_path(path) as temporary:
        torch.save(model.state_dict(), temporary)


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, state: _State
) -> None:
    """Write ``model.pth`` and, last, ``state.pth``: a folder with the latter is complete."""
    save_weights(model, folder / "model.pth")
    with atomic_path(folder / "state.pth") as temporary:
        torch.save(
            {
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "progress": asdict(state),
                "torch_rng": torch.get_rng_state(),
            },
            temporary,
        )


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> _State:
    """Restore a run from ``iter_N``, or from the newest complete one of a save folder.

    Raises:
        CheckpointError: nothing complete is there, or it belongs to another model.
    """
    folder = Path(path)
    if not (folder / "state.pth").is_file():
        complete = [p for p in folder.glob("iter_*") if (p / "state.pth").is_file()]
        if not complete:
            raise CheckpointError(f"{path}: no complete checkpoint (iter_N with state.pth) to resume from.")
        folder = max(complete, key=lambda p: int(p.name.removeprefix("iter_")))
    try:
        model.load_state_dict(torch.load(folder / "model.pth", map_location="cpu", weights_only=True))
        saved = torch.load(folder / "state.pth", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder}: can't resume from it: {str(error).splitlines()[0]}") from error
    scheduler.load_state_dict(saved["scheduler"])
    torch.set_rng_state(saved["torch_rng"])
    return _State(**saved["progress"])


def _drop_old(save_dir: Path, keep: int) -> None:
    if keep <= 0:
        return
    folders = sorted(save_dir.glob("iter_*"), key=lambda p: int(p.name.removeprefix("iter_")))
    for folder in folders[:-keep]:
        shutil.rmtree(folder)


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))  # type: ignore[no-untyped-call]


def polynomial(
    iterations: int, *, power: float = 0.9, end: float = 0.0, warmup: int = 0
) -> Callable[[int], float]:
    """Factor (1 - t/T)^power down to ``end``, after a linear warm-up."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, iterations - warmup))
        return (1 - end) * (1 - share) ** power + end

    return factor


def cosine(iterations: int, *, end: float = 0.0, warmup: int = 0) -> Callable[[int], float]:
    """Half a cosine from 1 to ``end``, after a linear warm-up."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, iterations - warmup))
        return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2

    return factor


def piecewise(boundaries: Sequence[int], values: Sequence[float]) -> Callable[[int], float]:
    """``values[i]`` until iteration ``boundaries[i]``; values are factors of the base rate."""
    return lambda step: values[sum(step >= boundary for boundary in boundaries)]
