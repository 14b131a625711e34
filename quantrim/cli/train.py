"""``quantrim train``: train what a configuration describes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json

ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="YAML configuration.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")]


def train(
    config: ConfigOption,
    save_dir: Annotated[Path, typer.Option(help="Checkpoints, best model, logs.")] = Path("output"),
    iters: Annotated[int | None, typer.Option(min=1, help="The configuration's by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Likewise.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Likewise.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Start from these weights.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", "--resume-model", help="iter_N folder, or a save folder.")
    ] = None,
    save_interval: Annotated[int, typer.Option(min=1, help="Iterations between checkpoints.")] = 1000,
    keep_checkpoint_max: Annotated[int, typer.Option(help="Newest to keep; 0: all.")] = 5,
    log_iters: Annotated[int, typer.Option(min=1, help="Iterations between log lines.")] = 10,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that load data.")] = 0,
    do_eval: Annotated[bool, typer.Option(help="Validate, and keep the best.")] = True,
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast.")] = False,
    ema_decay: Annotated[
        float | None, typer.Option(min=0, max=1, help="Average the weights, e.g. 0.999.")
    ] = None,
    use_tensorboard: Annotated[
        bool, typer.Option("--use-tensorboard", "--use-vdl", help="Write events for TensorBoard to SAVE_DIR.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    sets: SetOption = None,
    json_target: JsonOption = None,
) -> None:
    """Train a model; keeps checkpoints and the best weights, resumes exactly."""
    from quantrim.recipes.runs import best_key, train_config
    from quantrim.vision.config import load_config
    from quantrim.vision.train import TrainSettings

    loaded = load_config(config, sets or ())
    settings = TrainSettings(
        iterations=loaded.iterations(batch_size) if iters is None else iters,
        batch_size=loaded.batch_size if batch_size is None else batch_size,
        save_interval=save_interval,
        keep_checkpoint_max=keep_checkpoint_max,
        log_iters=log_iters,
        num_workers=num_workers,
        seed=seed,
        amp=amp,
        ema_decay=ema_decay,
        best_key=best_key(loaded),
        device=device,
    )
    result = train_config(
        loaded,
        settings,
        save_dir,
        learning_rate=learning_rate,
        do_eval=do_eval,
        weights=weights,
        resume=resume,
        use_tensorboard=use_tensorboard,
    )
    console = console_for(json_target)
    if result.best_metric is not None:
        console.print(f"[bold]best {settings.best_key} {result.best_metric:.4f} at iteration "
                      f"{result.best_iteration}[/bold]")  # fmt: skip
    console.print(f"{result.iterations} iterations, {result.seconds:.0f} s; weights in {result.best_weights}")
    emit_json({"command": "train", **asdict(result), "history": list(result.history)}, json_target)
