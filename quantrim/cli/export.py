"""``quantrim export``: torch weights to ONNX, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.options import (
    TUNE_SECONDS,
    InputShapeOption,
    ThreadsOption,
    TuneOption,
    TuneSecondsOption,
    parse_shape,
)
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.train import ConfigOption, SetOption
from quantrim.cli.tuning import tuned_file


def export(
    config: ConfigOption,
    weights: Annotated[Path, typer.Option("--weights", "--model-path", help="torch weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".onnx file; deploy.yaml goes beside it.")],
    input_shape: InputShapeOption = None,
    output_op: Annotated[str, typer.Option(help="none, argmax or softmax behind the logits.")] = "none",
    tune: TuneOption = False,
    tune_seconds: TuneSecondsOption = TUNE_SECONDS,
    engine: Annotated[
        list[str] | None, typer.Option(help="With --tune: engine to be fast on; those installed.")
    ] = None,
    threads: ThreadsOption = 1,
    sets: SetOption = None,
    json_target: JsonOption = None,
) -> None:
    """Export FP32 weights to ONNX and compare the file with torch; --input-shape fixes the shape."""
    from quantrim.files import size_mb
    from quantrim.recipes.runs import export as run
    from quantrim.recipes.runs import load
    from quantrim.vision.config import load_config

    loaded = load(load_config(config, sets or ()), weights)
    difference = run(loaded, output, shape=parse_shape(input_shape), output_op=output_op)
    console = console_for(json_target)
    tuning = None
    if tune:
        tuning = tuned_file(console, output, engine, parse_shape(input_shape), threads, tune_seconds)
    size = size_mb(output)
    console.print(
        f"{output}: {size:.2f} MB, largest difference from torch {difference:.1e}; "
        f"{output.with_name('deploy.yaml')}: how its images are prepared"
    )
    result = {"command": "export", "output": str(output), "size_mb": size, "difference": difference}
    emit_json(result if tuning is None else result | {"tuning": tuning}, json_target)
