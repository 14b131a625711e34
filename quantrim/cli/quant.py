"""``quantrim quant``: the one-step command of PaddleSeg 2.0, by its option names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.qat import show
from quantrim.cli.train import ConfigOption


def quant(
    config: ConfigOption,
    retraining_iters: Annotated[int, typer.Option(min=1, help="Iterations of retraining.")],
    model_path: Annotated[Path, typer.Option(help="FP32 weights.")],
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    num_workers: Annotated[int, typer.Option(min=0)] = 0,
    save_dir: Annotated[Path, typer.Option()] = Path("output"),
    seed: Annotated[int, typer.Option()] = 0,
    json_target: JsonOption = None,
) -> None:
    """Quantize, retrain for a few iterations, keep the better state, export INT8."""
    from quantrim.recipes.qat import QatRecipe, train_quantized
    from quantrim.recipes.runs import best_key
    from quantrim.vision.config import load_config
    from quantrim.vision.train import TrainSettings

    loaded = load_config(config)
    settings = TrainSettings(
        iterations=retraining_iters,
        batch_size=loaded.batch_size if batch_size is None else batch_size,
        num_workers=num_workers,
        seed=seed,
        best_key=best_key(loaded),
    )
    run = train_quantized(loaded, model_path, settings, save_dir, QatRecipe(learning_rate=learning_rate))
    show(console_for(json_target), run)
    emit_json(run.to_json(), json_target)
