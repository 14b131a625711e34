"""One training loop, for FP32 training, quantization-aware training and retraining after pruning.

A run is a function of its settings: data order and random transforms depend on (seed, epoch, index), the
learning rate on the iteration, and checkpoints hold the rest, so that a run killed at any moment goes on
from its last checkpoint with the losses of a run that was never interrupted.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType, convert_to_fp32, set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from quantrim.engines.machine import describe_machine
from quantrim.errors import ConfigError, ModelError, QuantrimError, did_you_mean, first_line
from quantrim.files import require_writable, write_json
from quantrim.scratch import claiming
from quantrim.vision.checkpoint import (
    RunState,
    carry_best,
    clear_unfinished,
    drop_old,
    load_checkpoint,
    newest,
    save_checkpoint,
    save_weights,
)
from quantrim.vision.data.datasets import VisionData, batches_per_epoch, training_batches
from quantrim.vision.losses import Weighted
from quantrim.vision.processes import from_first
from quantrim.vision.reporter import Metric, Reporter

LossFunction = Callable[[Any, Tensor], Tensor]
Validate = Callable[[nn.Module], Mapping[str, Metric]]
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
        amp: bfloat16 autocast of the forward pass; losses and validation stay float32.
        ema_decay: decay of a moving average of the weights, which is then what is validated; None for none. It
            begins shorter (:func:`decay_after`).
        best_key: metric that decides which checkpoint is best; larger is better.
        device: "auto", "cpu" or "cuda".
        clip_norm: largest norm of the gradient, None for no limit.
        trackers: what of accelerate's trackers hears of losses and metrics: "mlflow", "wandb", "aim", ...
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
    trackers: tuple[str, ...] = ()


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
    history: tuple[dict[str, Metric], ...]
    seconds: float


@dataclass(frozen=True)
class _Run:
    """What the functions of a run share.

    Attributes:
        wrapped: the model as accelerate prepared it for several processes.
        average: model that holds the moving average of the weights, if there is one.
        state: changes as the run goes on; all else stays.
    """

    settings: TrainSettings
    save_dir: Path
    accelerator: Accelerator
    model: nn.Module
    wrapped: nn.Module
    average: nn.Module | None
    optimizer: Optimizer
    scheduler: LRScheduler
    loss_fn: LossFunction
    validate: Validate | None
    teacher: nn.Module | None
    distill: Distill | None
    state: RunState


@claiming
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
        progress: report on stderr: a bar in a terminal, lines in a log.

    Raises:
        QuantrimError: the loss is NaN or infinite.
        ConfigError: the batch is too small for batch normalization.
        ModelError: the model or the loss fails on images and labels of this shape.
        CheckpointError: the checkpoint to resume from is missing or damaged.
    """
    start = time.perf_counter()
    _require_device(settings.device)
    require_writable(save_dir)
    set_seed(settings.seed)
    # Autocast is ours (_step): accelerate's is fixed for the whole process and replaces the module's forward.
    require_trackers(settings.trackers)
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision="no",
        log_with=list(settings.trackers) or None,
        project_dir=str(save_dir),
    )
    require_whole(accelerator.distributed_type)
    average = copy.deepcopy(model) if settings.ema_decay else None
    state = RunState()
    if resume is not None:
        checkpoint = newest(resume)
        state = load_checkpoint(checkpoint, model, optimizer, scheduler, average)
        clear_unfinished(Path(save_dir))
        carry_best(checkpoint.parent, Path(save_dir))
    for module in (model, average):
        if module is not None:  # a fifth faster on CPUs
            module.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    run = _Run(
        settings,
        Path(save_dir),
        accelerator,
        model,
        wrapped,
        average,
        optimizer,
        scheduler,
        loss_fn,
        validate,
        teacher if teacher is None else teacher.to(accelerator.device).eval(),
        distill,
        state,
    )
    if settings.trackers:
        facts = {name: value for name, value in asdict(settings).items() if name != "trackers"}
        accelerator.init_trackers("quantrim", config=facts | {"save_dir": str(save_dir)})
    try:
        with _reporter(run, len(train_set), use_tensorboard, progress) as reporter:
            _loop(run, reporter, _batches(run, train_set), on_iteration)
    finally:
        if settings.trackers:
            accelerator.end_training()
    return _record(run, time.perf_counter() - start)


def require_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that accelerate doesn't know, or whose package is missing."""
    legal = sorted({str(name) for name in LoggerType.list()} - {"all"})
    for name in names:
        if name not in legal:
            raise ConfigError(f"tracker {name!r}{did_you_mean(name, legal)}", field="tracker")
        if name not in {str(one) for one in get_available_trackers()}:
            raise ConfigError(f"tracker {name!r} is not installed. Install it with: pip install {name}")


def require_whole(kind: DistributedType) -> None:
    """Raise ConfigError where accelerate would split the weights over processes."""
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"accelerate is configured for {kind.value}, which splits the weights over processes; quantizers "
            "and checkpoints need them whole. Use data parallelism (MULTI_GPU or MULTI_CPU)."
        )


def _require_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r}{did_you_mean(device, ('auto', 'cpu', 'cuda'))}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda': torch finds no GPU here. Use device auto or cpu.", field="device")


def _batches(run: _Run, train_set: VisionData) -> Iterable[tuple[Tensor, Tensor]]:
    """This process's batches of the iterations that are left."""
    return training_batches(
        train_set,
        run.settings.batch_size,
        run.settings.iterations,
        start=run.state.iteration,
        seed=run.settings.seed,
        workers=run.settings.num_workers,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
    )


def _reporter(run: _Run, length: int, use_tensorboard: bool, progress: bool) -> Reporter:
    world, main = run.accelerator.num_processes, run.accelerator.is_main_process
    return Reporter(
        run.settings.iterations,
        per_epoch=batches_per_epoch(length, run.settings.batch_size, world),
        samples=run.settings.batch_size * world,
        start=run.state.iteration,
        shown=progress and main,
        events=run.save_dir if use_tensorboard and main else None,
        track=run.accelerator.log if run.settings.trackers else None,
    )


def _loop(
    run: _Run, reporter: Reporter, batches: Iterable[tuple[Tensor, Tensor]], on_iteration: OnIteration | None
) -> None:
    settings, state = run.settings, run.state
    run.wrapped.train()
    for images, labels in reporter.timed(batches):
        if on_iteration is not None:
            on_iteration(state.iteration, run.model)
        rate = run.optimizer.param_groups[0]["lr"]
        loss = _step(run, images, labels)
        run.scheduler.step()
        state.iteration += 1
        if run.average is not None:
            _follow(run.average, run.model, decay_after(state.iteration, float(settings.ema_decay or 0)))
        reporter.stepped()
        last = state.iteration == settings.iterations
        if last or state.iteration % settings.log_iters == 0:
            _log(run, reporter, float(loss), rate)
        if last or state.iteration % settings.save_interval == 0:
            _refuse_nan(float(loss), state.iteration)
            _checkpoint(run, reporter)
            run.wrapped.train()


def _step(run: _Run, images: Tensor, labels: Tensor) -> Tensor:
    """One optimizer step; the detached loss."""
    device = run.accelerator.device
    images = images.to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=run.settings.amp):
        outputs = convert_to_fp32(_forward(run.wrapped, images))
        with torch.no_grad():
            target = None if run.teacher is None else convert_to_fp32(run.teacher(images))
    loss = _loss_of(run, outputs, labels.to(device))
    if run.distill is not None and target is not None:
        loss = loss + run.distill(outputs, target)
    run.optimizer.zero_grad(set_to_none=True)
    run.accelerator.backward(loss)
    if run.settings.clip_norm is not None:
        run.accelerator.clip_grad_norm_(run.wrapped.parameters(), run.settings.clip_norm)
    run.optimizer.step()
    return loss.detach()


def _forward(model: nn.Module, images: Tensor) -> Any:
    try:
        return model(images)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        shape = "x".join(map(str, images.shape))
        # torch's words where batch normalization in training mode has one value to take a variance of.
        if str(error).startswith("Expected more than 1 value per channel"):
            raise ConfigError(
                f"batch_size {len(images)}: a batch normalization behind global pooling sees a single value a "
                f"channel of images {shape} and has no variance. Train with a batch size of 2 or more, or with "
                "larger images."
            ) from error
        name = type(model).__name__
        raise ModelError(f"{name} fails on images of shape {shape} ({first_line(error)})") from error


def _loss_of(run: _Run, outputs: Any, labels: Tensor) -> Tensor:
    try:
        return run.loss_fn(outputs, labels)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"the loss fails on the outputs of {type(run.model).__name__} ({first_line(error)})"
        ) from error


def _refuse_nan(loss: float, iteration: int) -> None:
    if not math.isfinite(loss):
        raise QuantrimError(
            f"loss is {loss} at iteration {iteration}. Lower the learning rate, clip the gradient or "
            "check the data; the last checkpoint is unharmed."
        )


def _log(run: _Run, reporter: Reporter, loss: float, rate: float) -> None:
    _refuse_nan(loss, run.state.iteration)
    run.state.history.append({"iteration": run.state.iteration, "loss": loss, "lr": rate})
    parts = [float(part) for part in run.loss_fn.parts] if isinstance(run.loss_fn, Weighted) else []
    reporter.log(run.state.iteration, loss, rate, parts if len(parts) > 1 else ())


def decay_after(iterations: int, decay: float) -> float:
    """Decay of the moving average after so many iterations: at first shorter, so that the start is forgotten.

    (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, until that exceeds ``decay``.
    """
    return min(decay, (1 + iterations) / (10 + iterations))


def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's; buffers are copied."""
    with torch.no_grad():
        for kept, new in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(new.detach().to(kept.device), 1 - decay)
        for held, buffer in zip(average.buffers(), model.buffers(), strict=True):
            held.copy_(buffer)


def _checkpoint(run: _Run, reporter: Reporter) -> None:
    """Validate, keep the best weights, save everything that a resumed run needs."""
    run.accelerator.wait_for_everyone()
    if not run.accelerator.is_main_process:
        return
    judged = run.model if run.average is None else run.average
    if run.validate is None or _is_best(run, run.validate, judged, reporter):
        save_weights(judged, run.save_dir / "best_model" / "model.pth")
    folder = run.save_dir / f"iter_{run.state.iteration}"
    save_checkpoint(folder, run.model, run.optimizer, run.scheduler, run.state, run.average)
    drop_old(run.save_dir, run.settings.keep_checkpoint_max)


def _is_best(run: _Run, validate: Validate, judged: nn.Module, reporter: Reporter) -> bool:
    """Validate; whether the metric that decides is above all before."""
    key, state = run.settings.best_key, run.state
    judged.eval()
    metrics = dict(validate(judged))
    if key not in metrics:
        raise QuantrimError(f"validation gives {sorted(metrics)}, but best_key is {key!r}.")
    state.history.append({"iteration": state.iteration, **metrics})
    value = metrics[key]
    assert isinstance(value, float)
    best = state.best_metric is None or value > state.best_metric
    if best:
        state.best_metric, state.best_iteration = value, state.iteration
    reporter.validated(
        state.iteration, metrics, f"best {key} {state.best_metric:.4f} at iter {state.best_iteration}"
    )
    return best


def _record(run: _Run, seconds: float) -> TrainResult:
    """The result, in every process as in the first; ``run.json`` holds it with settings and machine."""
    state: RunState = from_first(run.state)
    result = TrainResult(
        state.iteration,
        state.best_metric,
        state.best_iteration,
        str(run.save_dir / "best_model" / "model.pth"),
        tuple(state.history),
        seconds,
    )
    if run.accelerator.is_main_process:
        record = {
            "settings": asdict(run.settings),
            "result": asdict(result),
            "machine": describe_machine().to_json(),
        }
        write_json(run.save_dir / "run.json", record)
    return result
