"""``quantrim quant``: the one-step command of PaddleSeg 2.0, by its option names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.options import (
    BatchSizeOption,
    ConfigOption,
    DeviceOption,
    LearningRateOption,
    NumWorkersOption,
    SaveDirOption,
    SeedOption,
    SetOption,
    TrustOption,
    WeightsOption,
    read_config,
    train_settings,
)
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.qat import show


def quant(
    config: ConfigOption,
    retraining_iters: Annotated[int, typer.Option(min=1, help="Iterations of retraining.")],
    weights: WeightsOption = None,
    batch_size: BatchSizeOption = None,
    learning_rate: LearningRateOption = None,
    num_workers: NumWorkersOption = 0,
    save_dir: SaveDirOption = Path("output"),
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Quantize, retrain for a few iterations, keep the better state, export INT8."""
    from quantrim.recipes.qat import QatRecipe, train_quantized

    loaded = read_config(config, sets, trust_code)
    settings = train_settings(
        loaded, iters=retraining_iters, batch_size=batch_size, seed=seed, num_workers=num_workers, device=device
    )
    run = train_quantized(loaded, weights, settings, save_dir, QatRecipe(learning_rate=learning_rate))
    show(console_for(json_target), run)
    emit_json(run.to_json(), json_target)
