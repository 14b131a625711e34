"""``quantrim qat``: quantization-aware training from FP32 weights to a verified INT8 file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quantrim.cli.options import (
    TUNE_SECONDS,
    AmpOption,
    BatchSizeOption,
    ConfigOption,
    DeviceOption,
    DoEvalOption,
    EmaOption,
    ItersOption,
    KeepOption,
    LearningRateOption,
    LogItersOption,
    NumWorkersOption,
    ResumeOption,
    SaveDirOption,
    SaveIntervalOption,
    SeedOption,
    SetOption,
    TensorboardOption,
    ThreadsOption,
    TrackerOption,
    TrustOption,
    TuneOption,
    TuneSecondsOption,
    WeightsOption,
    parse_words,
    read_config,
    train_settings,
)
from quantrim.cli.output import JsonOption, console_for, emit_artefact
from quantrim.cli.tuning import show_tuning, tuning_memory
from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from quantrim.qat.config import QATConfig
    from quantrim.recipes.qat import QatRun


def qat(
    config: ConfigOption,
    weights: WeightsOption = None,
    save_dir: SaveDirOption = Path("output"),
    method: Annotated[str, typer.Option(help="default, pact or lsq.")] = "default",
    target: Annotated[str | None, typer.Option(help="portable, openvino, onnxruntime or tensorrt.")] = None,
    quant_config: Annotated[Path | None, typer.Option(help="YAML file with PaddleSlim's settings.")] = None,
    iters: ItersOption = None,
    batch_size: BatchSizeOption = None,
    learning_rate: LearningRateOption = None,
    weight_bits: Annotated[int, typer.Option(min=2, max=8)] = 8,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples.")] = 100,
    initial_range: Annotated[str, typer.Option(help="mse, kl, hist, avg, min_max, abs_max or emd.")] = "mse",
    quantize: Annotated[str, typer.Option(help="all, backbone, or globs of modules to quantize.")] = "all",
    skip: Annotated[list[str] | None, typer.Option(help="Glob on modules that stay float.")] = None,
    distill: Annotated[bool, typer.Option("--distill", help="Learn from the FP32 model, too.")] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Learn from these weights instead, as of the unpruned model.")
    ] = None,
    distill_features: Annotated[str | None, typer.Option(help="Modules whose outputs are compared.")] = None,
    freeze_ranges_at: Annotated[int | None, typer.Option(help="Iteration; three quarters by default.")] = None,
    freeze_batch_norm_at: Annotated[int | None, typer.Option(help="Iteration; three quarters.")] = None,
    rank_ranges: Annotated[
        str, typer.Option(help="Ranges seen by several processes: first, max or mean.")
    ] = "first",
    warm_up: Annotated[int, typer.Option(min=0, help="Iterations before quantization starts.")] = 0,
    resume: ResumeOption = None,
    save_interval: SaveIntervalOption = 1000,
    keep_checkpoint_max: KeepOption = 5,
    log_iters: LogItersOption = 10,
    num_workers: NumWorkersOption = 0,
    do_eval: DoEvalOption = True,
    amp: AmpOption = False,
    ema_decay: EmaOption = None,
    use_tensorboard: TensorboardOption = False,
    tracker: TrackerOption = None,
    output_op: Annotated[
        str, typer.Option(help="none, argmax or softmax; of a detector raw, decoded or nms.")
    ] = "none",
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 1,
    tune: TuneOption = False,
    tune_seconds: TuneSecondsOption = TUNE_SECONDS,
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Train with quantization in the loop; export the best state as INT8 and verify it on the engines."""
    from quantrim.recipes.qat import QatRecipe, train_quantized
    from quantrim.vision.processes import is_first

    loaded = read_config(config, sets, trust_code)
    chosen, chosen_target = settings_of(
        method,
        quant_config,
        weight_bits=weight_bits,
        initial_range=initial_range,
        warm_up=warm_up,
        freeze_ranges_at=freeze_ranges_at,
        freeze_batch_norm_at=freeze_batch_norm_at,
        rank_ranges=rank_ranges,
        skip=(*(skip or ()), *kept_float(loaded, quantize)),
    )
    recipe = QatRecipe(
        target=target or chosen_target,
        config=chosen,
        samples=samples,
        learning_rate=learning_rate,
        distillation=distillation(distill or teacher is not None, distill_features),
        teacher=teacher,
        output_op=checked_output_op(output_op),
        threads=threads,
        tune_seconds=tune_seconds if tune else 0.0,
        memory=tuning_memory() if tune else None,
    )
    settings = train_settings(
        loaded,
        iters=iters,
        batch_size=batch_size,
        seed=seed,
        save_interval=save_interval,
        keep_checkpoint_max=keep_checkpoint_max,
        log_iters=log_iters,
        num_workers=num_workers,
        amp=amp,
        ema_decay=ema_decay,
        device=device,
        trackers=tuple(name for name in tracker or () if name != "tensorboard"),
    )
    run = train_quantized(
        loaded,
        weights,
        settings,
        save_dir,
        recipe,
        resume=resume,
        do_eval=do_eval,
        use_tensorboard=use_tensorboard or "tensorboard" in (tracker or ()),
    )
    if is_first():  # of several processes one reports
        show(console_for(json_target), run)
        emit_artefact(run.to_json(), json_target, run.output, "qat")


def settings_of(name: str, quant_config: Path | None, **changes: Any) -> tuple[QATConfig, str]:
    """QAT settings and target from a method's name or a file of PaddleSlim's keys."""
    from dataclasses import replace

    from quantrim.paddle.settings import config_from_paddle
    from quantrim.qat.config import method

    if quant_config is None:
        return method(name, **changes), "portable"
    if name != "default":
        raise ConfigError("--method and --quant-config both say how to quantize; give one of them.")
    seed = config_from_paddle(_yaml(quant_config))
    del changes["weight_bits"]
    changes["skip"] = (*seed.config.skip, *changes["skip"])
    return replace(seed.config, **changes), seed.target


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: no readable YAML file ({str(error).splitlines()[0]}).") from error


def kept_float(config: Any, quantize: str) -> tuple[str, ...]:
    """Modules that stay float when only the backbone, or only some globs of top-level modules, are meant."""
    import fnmatch

    from quantrim.recipes.loading import load

    if quantize == "all":
        return ()
    globs = parse_words(quantize)
    names = [name for name, _ in load(config, None).model.named_children()]
    kept = [name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
    if not kept:
        raise ConfigError(f"--quantize {quantize!r} matches none of the model's parts: {', '.join(names)}.")
    return tuple(name for name in names if name not in kept)


def distillation(wanted: bool, features: str | None) -> Any:
    """Settings of distillation, or None."""
    from quantrim.distillation import Distillation

    if not wanted and features is None:
        return None
    return Distillation(features=tuple(parse_words(features)))


def checked_output_op(word: str) -> Any:
    """One of none, argmax, softmax, and a detector's raw, decoded, nms."""
    if word not in ("none", "argmax", "softmax", "raw", "decoded", "nms"):
        raise ConfigError(f"--output-op {word!r}; legal: none, argmax, softmax, raw, decoded, nms.")
    return word


def show(console: Console, run: QatRun) -> None:
    """Headlines, then what training changed, then the file."""
    for engine in run.engines:
        console.print(f"[bold]{engine.headline}[/bold]")
    table = Table(box=None, pad_edge=False)
    table.add_column("state")
    table.add_column(run.metric, justify="right")
    names = {
        "fp32": "FP32",
        "ptq": "INT8 before training",
        "qat": f"INT8 best, iteration {run.best_iteration}",
        "exported": "exported, simulated",
        "engine": "exported, on the engine",
    }
    for key, title in names.items():
        if key in run.metrics:
            table.add_row(title, f"{run.metrics[key]:.4f}")
    console.print(table)
    show_tuning(console, run.tuning)
    if run.chosen == "ptq":
        console.print("[yellow]Training did not help; the calibrated model was exported.[/yellow]")
    sizes = run.size_mb
    console.print(
        f"{run.output}: {sizes['int8']:.2f} MB (FP32 {sizes['fp32']:.2f} MB), equal codes "
        f"{run.equal_codes:.4%}, {run.seconds:.0f} s of training"
    )
