"""``quantrim train``: train what a configuration describes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from quantrim.cli.options import (
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
    TrackerOption,
    TrustOption,
    WeightsOption,
    read_config,
    train_settings,
)
from quantrim.cli.output import JsonOption, console_for, emit_json


def train(
    config: ConfigOption,
    save_dir: SaveDirOption = Path("output"),
    iters: ItersOption = None,
    batch_size: BatchSizeOption = None,
    learning_rate: LearningRateOption = None,
    weights: WeightsOption = None,
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
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Train a model; keeps checkpoints and the best weights, resumes exactly."""
    from quantrim.recipes.runs import train_config

    loaded = read_config(config, sets, trust_code)
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
    result = train_config(
        loaded,
        settings,
        save_dir,
        learning_rate=learning_rate,
        do_eval=do_eval,
        weights=weights,
        resume=resume,
        use_tensorboard=use_tensorboard or "tensorboard" in (tracker or ()),
    )
    console = console_for(json_target)
    if result.best_metric is not None:
        console.print(f"[bold]best {settings.best_key} {result.best_metric:.4f} at iteration "
                      f"{result.best_iteration}[/bold]")  # fmt: skip
    console.print(f"{result.iterations} iterations, {result.seconds:.0f} s; weights in {result.best_weights}")
    emit_json({"command": "train", **asdict(result), "history": list(result.history)}, json_target)
