"""``quantrim export``: torch weights to ONNX, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.options import InputShapeOption, parse_shape
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.train import ConfigOption, SetOption


def export(
    config: ConfigOption,
    weights: Annotated[Path, typer.Option("--weights", "--model-path", help="torch weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".onnx file; deploy.yaml goes beside it.")],
    input_shape: InputShapeOption = None,
    output_op: Annotated[str, typer.Option(help="none, argmax or softmax behind the logits.")] = "none",
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
    size = size_mb(output)
    console_for(json_target).print(
        f"{output}: {size:.2f} MB, largest difference from torch {difference:.1e}; "
        f"{output.with_name('deploy.yaml')}: how its images are prepared"
    )
    emit_json(
        {"command": "export", "output": str(output), "size_mb": size, "difference": difference}, json_target
    )
