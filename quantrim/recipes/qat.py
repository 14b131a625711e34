"""One quantization-aware training run: FP32 weights and a configuration in, verified INT8 file out.

Three states are judged by the same metric, all quantized: before training (calibrated only, which is PTQ),
during it, and after it. The best one is exported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from quantrim.distillation import Distillation, Distiller
from quantrim.engines import EngineName, installed_engines, open_session
from quantrim.engines.machine import describe_machine
from quantrim.engines.trial import EngineResult, ask
from quantrim.errors import CheckpointError
from quantrim.files import size_mb, write_json
from quantrim.graph import graph_from_onnx
from quantrim.graph.session import save_model
from quantrim.judges import Judging
from quantrim.qat.config import QATConfig
from quantrim.qat.export.export import ExportResult
from quantrim.qat.qat import QAT
from quantrim.recipes.boxes import boxes_distance
from quantrim.recipes.calibration import calibration_pairs
from quantrim.recipes.judging import task_judge
from quantrim.recipes.loading import QUANTIZATION_FILE, Loaded, load_float, write_quantization
from quantrim.recipes.runs import finish_output, validation, write_deploy
from quantrim.rewrites import Memory, tune_file
from quantrim.scratch import claiming, scratch_folder
from quantrim.targets import target_named
from quantrim.vision.config import (
    Config,
    build_data,
    build_distillation,
    build_loss,
    build_optimizer,
)
from quantrim.vision.models.detection import is_detector
from quantrim.vision.processes import from_first, is_first
from quantrim.vision.train import TrainResult, TrainSettings, train

OutputOp = Literal["none", "argmax", "softmax", "raw", "decoded", "nms"]
#: QAT's learning rate over the configuration's, as PaddleSeg's tutorial has it.
RATE_SHARE = 0.1
#: Share of the run after which ranges and BatchNorm statistics stand still.
SETTLED_SHARE = 0.75
_VERDICT_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class QatRecipe:
    """What to do beside training.

    Attributes:
        target: name of the target.
        config: QAT settings; schedules that are None are set from the run's length.
        samples: calibration samples.
        learning_rate: of the float weights; a tenth of the configuration's when None.
        distillation: learn from the FP32 model, too; None for labels alone.
        teacher: weights of another model of the configuration that teaches, such as the unpruned one; None for
            the model itself in FP32.
        output_op: what stands behind the logits, or the maps of a detector, in the file.
        threads: CPU threads of the latency measurement.
        engines: engines to ask; those of the target that are installed when None.
        tune_seconds: time for rewrites that the engines run faster; 0 for none.
        memory: answers of earlier races, for tuning.
    """

    target: str = "portable"
    config: QATConfig = field(default_factory=QATConfig)
    samples: int = 100
    learning_rate: float | None = None
    distillation: Distillation | None = None
    teacher: str | Path | None = None
    output_op: OutputOp = "none"
    threads: int = 1
    engines: tuple[EngineName, ...] | None = None
    tune_seconds: float = 0.0
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class QatRun:
    """What came of a run.

    Attributes:
        output: the INT8 file.
        metric: name of the deciding metric.
        metrics: its value for "fp32", "ptq" (before training), "qat" (best while training), "exported" (the
            state that was exported, in torch) and "engine" (the file on the first engine).
        chosen: which state was exported: "ptq" or "qat".
        best_iteration: iteration of the best state while training.
        equal_codes: share of equal integer codes of file and module.
        size_mb: size of the file, "int8", and of the same graph in float, "fp32".
        seconds: time of training.
        engines: verdicts.
        tuning: what was tried to make the file faster; None where nothing was asked for.
    """

    output: str
    metric: str
    metrics: Mapping[str, float]
    chosen: Literal["ptq", "qat"]
    best_iteration: int | None
    equal_codes: float
    size_mb: Mapping[str, float]
    seconds: float
    engines: tuple[EngineResult, ...]
    tuning: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value; verdict and latency of the first engine stand at the top."""
        value: dict[str, Any] = {
            "command": "qat",
            "output": self.output,
            "metric": self.metric,
            "metrics": dict(self.metrics),
            "chosen": self.chosen,
            "best_iteration": self.best_iteration,
            "equal_codes": self.equal_codes,
            "size_mb": dict(self.size_mb),
            "seconds": round(self.seconds, 3),
        }
        if self.tuning is not None:
            value["tuning"] = self.tuning
        engines = [result.to_json() for result in self.engines]
        return (
            value
            | (engines[0] if engines else {})
            | {"engines": engines, "machine": describe_machine().to_json()}
        )


@claiming
def train_quantized(
    config: Config,
    weights: str | Path | None,
    settings: TrainSettings,
    save_dir: str | Path,
    recipe: QatRecipe,
    *,
    resume: str | Path | None = None,
    do_eval: bool = True,
    use_tensorboard: bool = False,
    progress: bool = True,
) -> QatRun:
    """Calibrate, train, choose, export, verify.

    Args:
        config: model, data, loss, optimizer and schedule.
        weights: FP32 weights to start from; None for the configuration's own, or fresh ones.
        settings: how long and how to train; ``best_key`` decides.
        save_dir: gets checkpoints, ``model_int8.onnx``, ``deploy.yaml`` and ``qat.json``.
        recipe: everything else.
        resume: ``iter_N`` folder or save folder of an interrupted run with the same settings.
        do_eval: judge the states; else the last one is exported, and only the engine tells a metric.
        use_tensorboard: write PaddleSeg's scalars to the save folder.
        progress: show a progress bar.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError: one line each that says what is wrong.
    """
    save_dir, key = Path(save_dir), settings.best_key
    torch.manual_seed(settings.seed)
    loaded = load_float(config, weights)
    judge = validation(config) if do_eval else None
    metrics = {} if judge is None else {"fp32": float(judge(loaded.model)[key])}
    teacher = copy.deepcopy(loaded.model)
    example = loaded.data[0][0][None]
    chosen_config = _with_float_heads(_scheduled(recipe.config, settings.iterations), loaded.model)
    qat = QAT(loaded.model, example, target=recipe.target, config=chosen_config)
    qat.calibrate(picture[None] for picture, _ in calibration_pairs(config, recipe.samples))
    if judge is not None:
        metrics["ptq"] = float(judge(qat.module)[key])
    before = copy.deepcopy(qat.module.state_dict())
    run_train = partial(_train, qat, teacher, config, settings, save_dir, recipe, judge)
    result = run_train(resume=resume, use_tensorboard=use_tensorboard, progress=progress)
    if result.best_metric is not None:
        metrics["qat"] = result.best_metric
    export = partial(_exported, qat, loaded, teacher, before, result, metrics, save_dir, key, recipe)
    return from_first(export() if is_first() else None)


def _exported(
    qat: QAT,
    loaded: Loaded,
    teacher: nn.Module,
    before: Mapping[str, Tensor],
    result: TrainResult,
    metrics: dict[str, float],
    save_dir: Path,
    key: str,
    recipe: QatRecipe,
) -> QatRun:
    """Choose the better state, export it and ask the engines; of several processes the first does so."""
    example = loaded.data[0][0][None]
    chosen: Literal["ptq", "qat"] = "qat"
    if metrics.get("qat", float("-inf")) < metrics.get("ptq", float("-inf")):
        chosen = "ptq"
    state = _weights(result.best_weights) if chosen == "qat" else before
    qat.module.cpu()
    qat.load_state_dict(state)
    if chosen in metrics:
        metrics["exported"] = metrics[chosen]
    exported = qat.export(save_dir / "model_int8.onnx", example, input_names=["image"])
    engines, float_mb = _ask(exported, loaded, recipe)
    if engines:
        session = open_session(exported.path, engines[0].verdict.engine)
        metrics["engine"] = float(task_judge(loaded.config, data=loaded.data).of_session(session)[key])  # type: ignore[arg-type]
    finish_output(exported.path, replace(loaded, model=teacher), recipe.output_op)
    tuning = _tuned(exported.path, recipe)
    write_deploy(exported.path, loaded, recipe.output_op)
    run = QatRun(
        output=str(exported.path),
        metric=key,
        metrics=metrics,
        chosen=chosen,
        best_iteration=result.best_iteration,
        equal_codes=exported.agreement.share,
        size_mb={"fp32": float_mb, "int8": size_mb(exported.path)},
        seconds=result.seconds,
        engines=engines,
        tuning=tuning,
    )
    write_json(save_dir / "qat.json", run.to_json())
    return run


def _with_float_heads(config: QATConfig, model: nn.Module) -> QATConfig:
    """A detector's output layers stay float, as PaddleDetection's ``not_quant_pattern yolo_output`` asks."""
    if not is_detector(model):
        return config
    return replace(config, skip=(*config.skip, *model.head_outputs))


def _weights(path: str) -> dict[str, Tensor]:
    """Best weights of a run.

    Raises:
        CheckpointError: the file is gone, or stayed behind in another folder than the run was resumed in.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: the best weights are missing. Resume in the run's own save folder.")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _scheduled(config: QATConfig, iterations: int) -> QATConfig:
    """Settings with the schedules that the user left open."""
    settled = round(SETTLED_SHARE * iterations)
    return replace(
        config,
        freeze_ranges_at=settled if config.freeze_ranges_at is None else config.freeze_ranges_at,
        freeze_batch_norm_at=settled if config.freeze_batch_norm_at is None else config.freeze_batch_norm_at,
    )


def _train(
    qat: QAT,
    teacher: nn.Module,
    config: Config,
    settings: TrainSettings,
    save_dir: Path,
    recipe: QatRecipe,
    judge: Callable[[nn.Module], dict[str, Any]] | None,
    **options: Any,
) -> TrainResult:
    data = build_data(config, "train_dataset", seed=settings.seed)
    optimizer, scheduler = quantized_optimizer(config, qat, settings.iterations, recipe.learning_rate)
    noted = save_dir / "best_model" / QUANTIZATION_FILE

    def iterate(iteration: int, module: nn.Module) -> None:
        if not noted.is_file():  # written when training begins, so that a run that is refused leaves nothing
            write_quantization(noted.parent, qat)
        qat.advance(iteration)

    distiller = None
    if recipe.distillation is not None:
        if recipe.teacher is not None:
            teacher = load_float(config, recipe.teacher).model
        taught = build_distillation(config, recipe.distillation)
        distiller = Distiller(qat.module, teacher, taught, boxes_distance(teacher))
    try:
        return train(
            qat.module,
            settings,
            data,
            save_dir,
            loss_fn=build_loss(config, data.ignore_index, teacher),
            optimizer=optimizer,
            scheduler=scheduler,
            validate=judge,
            on_iteration=iterate,
            teacher=teacher if distiller is not None else None,
            distill=None if distiller is None else distiller.loss,
            **options,
        )
    finally:
        if distiller is not None:
            distiller.remove()


def quantized_optimizer(
    config: Config, qat: QAT, iterations: int, learning_rate: float | None
) -> tuple[Optimizer, LRScheduler]:
    """The configuration's optimizer and schedule, with groups of their own for learned quantizers."""
    optimizer, scheduler = build_optimizer(
        config, qat.module, iterations=iterations, learning_rate=learning_rate
    )
    assert isinstance(scheduler, LambdaLR)
    group = optimizer.param_groups[0]
    rate = group["initial_lr"] * (RATE_SHARE if learning_rate is None else 1.0)
    groups = qat.parameter_groups(rate, group["weight_decay"])
    optimizer.param_groups.clear()
    for entry in groups:
        optimizer.add_param_group(entry)
    return optimizer, LambdaLR(optimizer, scheduler.lr_lambdas[0])


def _ask(exported: ExportResult, loaded: Loaded, recipe: QatRecipe) -> tuple[tuple[EngineResult, ...], float]:
    """Verdicts of the target's engines, and the size of the float file that INT8 was raced against."""
    target = target_named(recipe.target)
    asked = recipe.engines
    if asked is None:
        asked = tuple(engine for engine in installed_engines() if engine in target.engines)
    count = min(_VERDICT_SAMPLES, len(loaded.data))
    name = str(exported.float_model.graph.inputs[0].name)
    feeds = [{name: loaded.data[index][0][None].numpy()} for index in range(count)]
    graph = graph_from_onnx(exported.float_model, feeds[0])
    judging = Judging(loaded.data.task, accept="any", source="as the data set says")  # the metric is the bar
    with scratch_folder() as folder:
        path = folder / "float.onnx"
        save_model(exported.float_model, path)
        results = tuple(
            ask(
                engine,
                path,
                exported.path,
                graph,
                exported.plan.float_nodes,
                feeds,
                recipe.threads,
                judging=judging,
                held_out=True,
            )
            for engine in asked
        )
        return results, size_mb(path)


def _tuned(path: Path, recipe: QatRecipe) -> dict[str, Any] | None:
    """Make the file faster where that was asked for, the operator behind its logits included."""
    rules = target_named(recipe.target)
    engines = recipe.engines or tuple(name for name in installed_engines() if name in rules.engines)
    if recipe.tune_seconds <= 0 or not engines:
        return None
    done = tune_file(
        path, engines, threads=recipe.threads, seconds=recipe.tune_seconds, memory=recipe.memory
    )  # fmt: skip
    return done.to_json()
