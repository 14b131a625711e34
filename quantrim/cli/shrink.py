"""``quantrim shrink``: weights in fewer bits, arithmetic in float."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.options import InputShapeOption, parse_shape
from quantrim.cli.output import JsonOption, console_for, emit_json, record_of


def shrink(
    model: Annotated[Path, typer.Argument(help=".onnx file or Paddle inference model folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".onnx file to write.")],
    kind: Annotated[str, typer.Option(help="int8, int16 or fp16.")] = "int8",
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale a weight, not a channel.")
    ] = False,
    threshold_rate: Annotated[
        float, typer.Option(help="Share of a channel's largest weights that integers clip.")
    ] = 0.0,
    skip: Annotated[list[str] | None, typer.Option(help="Glob on node names that stay as they are.")] = None,
    input_shape: InputShapeOption = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine to judge on.")] = None,
    json_target: JsonOption = None,
) -> None:
    """Store the weights of MODEL in fewer bits, without calibration: smaller, not faster."""
    from quantrim.post_training.weights_only import shrink_weights

    result = shrink_weights(
        model,
        output,
        kind=kind,  # type: ignore[arg-type]
        per_channel=not per_tensor,
        threshold_rate=threshold_rate,
        skip=skip or (),
        input_shape=parse_shape(input_shape),
        engines=engine or None,  # type: ignore[arg-type]
    )
    console = console_for(json_target)
    sizes = result.size_mb
    console.print(
        f"{result.output}: {sizes[result.kind]:.2f} MB (FP32 {sizes['fp32']:.2f} MB), {result.layers} weights "
        f"as {result.kind}",
        markup=False,
    )
    for name, judgement in result.judgements.items():
        console.print(f"{name}: {judgement.summary}", markup=False)
    emit_json(result.to_json(), json_target, record_of(output, "shrink"))
