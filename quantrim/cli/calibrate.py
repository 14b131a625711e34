"""``quantrim calibrate``: sketch a shard of the calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.calibration import (
    DeployOption,
    FitOption,
    MeanOption,
    StdOption,
    chosen_deploy,
    preprocess_of,
)
from quantrim.cli.options import InputShapeOption, parse_shape
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.errors import ConfigError


def calibrate(
    model: Annotated[Path, typer.Argument(help=".onnx file.")],
    data: Annotated[Path, typer.Option(help="Image folder, list file, .npy or .npz arrays: all of them.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".npz file of the shard.")],
    shard: Annotated[str, typer.Option(metavar="I/N", help="Which of how many shards, from 0.")] = "0/1",
    target: Annotated[str, typer.Option(help="portable, openvino, onnxruntime or tensorrt.")] = "portable",
    samples: Annotated[int | None, typer.Option(min=1, help="Of all shards together; all by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a forward pass.")] = 2,
    deploy: DeployOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    fit: FitOption = None,
    input_shape: InputShapeOption = None,
    json_target: JsonOption = None,
) -> None:
    """Sketch one shard of the calibration data of MODEL; `ptq --sketches` adds the shards up exactly.

    A shard that is there already, of the same model, settings and data, is not made again.
    """
    from quantrim.errors import DataError
    from quantrim.journal import journal_beside
    from quantrim.post_training.config import PtqConfig
    from quantrim.post_training.shards import calibrate_shard, load_shard, save_shard, shards_key

    index, count = _shard(shard)
    config = PtqConfig(
        target=target,
        samples=samples,
        batch_size=batch_size,
        input_shape=parse_shape(input_shape),
        engines=(),
    )
    preprocess = preprocess_of([model], chosen_deploy([model], deploy, mean, std, fit), mean, std, fit)
    console = console_for(json_target)
    if output.exists():
        made = load_shard(output)
        wanted = (shards_key(model, config), index, count, samples)
        if (made.key, made.index, made.count, made.asked) != wanted:
            raise DataError(f"{output}: a shard of another model or of other settings. Delete it first.")
        console.print(f"{output}: shard {index} of {count} is there already", markup=False)
    else:
        with journal_beside(output) as journal:
            made = calibrate_shard(model, data, config, index, count, preprocess=preprocess, journal=journal)
            save_shard(made, output)
        console.print(
            f"{output}: shard {index} of {count}, {made.samples} samples, {len(made.sketches)} tensors",
            markup=False,
        )
    facts = {"output": str(output), "shard": index, "of": count, "samples": made.samples, "key": made.key}
    emit_json({"command": "calibrate", **facts}, json_target)


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ConfigError(f"--shard {text!r} is not of the form I/N, such as 0/8.")
    return int(index), int(count)
