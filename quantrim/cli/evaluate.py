"""``quantrim evaluate``: metrics of weights or of a file on an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.train import ConfigOption, SetOption
from quantrim.errors import ConfigError


def evaluate(
    config: ConfigOption,
    weights: Annotated[Path | None, typer.Option(help="torch weights.")] = None,
    model: Annotated[Path | None, typer.Option(help=".onnx file, run on --engine.")] = None,
    engine: Annotated[str, typer.Option()] = "openvino",
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    limit: Annotated[int | None, typer.Option(help="Use the first so many pictures.")] = None,
    scales: Annotated[str, typer.Option(help="Scales of multi-scale evaluation, e.g. 0.75,1,1.25.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Also mirrored.")] = False,
    threads: Annotated[int | None, typer.Option()] = None,
    sets: SetOption = None,
    json_target: JsonOption = None,
) -> None:
    """Evaluate torch weights, or an ONNX file on an engine, on a configuration's validation set."""
    from quantrim.cli.options import parse_floats
    from quantrim.engines import open_session
    from quantrim.vision.config import load_config
    from quantrim.vision.evaluate import engine_predictor, multi_scale, torch_predictor
    from quantrim.vision.evaluate import evaluate as run
    from quantrim.vision.runs import load

    if (weights is None) == (model is None):
        raise ConfigError("give either --weights or --model.")
    loaded = load(load_config(config, sets or ()), weights)
    if model is None:
        predict = torch_predictor(loaded.model)
    else:
        predict = engine_predictor(open_session(model, engine, threads=threads))
    factors = parse_floats(scales, "--scales")
    if factors != (1.0,) or flip:
        predict = multi_scale(predict, factors, flip=flip)
    metrics = run(predict, loaded.data, batch_size=batch_size, limit=limit)
    console = console_for(json_target)
    for name, value in metrics.items():
        text = ", ".join(f"{v:.4f}" for v in value) if isinstance(value, list) else f"{value:.4f}"
        console.print(f"{name}: {text}")
    emit_json({"command": "evaluate", "model": str(model or weights), "metrics": metrics}, json_target)
