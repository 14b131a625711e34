"""``quantrim export``: torch weights to ONNX, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantrim.cli.calibration import ImageFileOption, image_file_told
from quantrim.cli.options import (
    TUNE_SECONDS,
    ConfigOption,
    DeviceOption,
    InputShapeOption,
    SetOption,
    ThreadsOption,
    TrustOption,
    TuneOption,
    TuneSecondsOption,
    WeightsOption,
    parse_shape,
    read_config,
)
from quantrim.cli.output import JsonOption, console_for, emit_json, record_of
from quantrim.cli.tuning import tuned_file
from quantrim.errors import ConfigError
from quantrim.recipes.deploy import note_precision


def export(
    config: ConfigOption,
    weights: WeightsOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=".onnx file; deploy.yaml goes beside it.")
    ] = None,
    save_dir: Annotated[Path | None, typer.Option(help="Instead: folder for model.onnx.")] = None,
    input_shape: InputShapeOption = None,
    output_op: Annotated[
        str, typer.Option(help="none, argmax or softmax; of a detector raw, decoded or nms.")
    ] = "none",
    tune: TuneOption = False,
    tune_seconds: TuneSecondsOption = TUNE_SECONDS,
    engine: Annotated[
        list[str] | None, typer.Option(help="With --tune: engine to be fast on; those installed.")
    ] = None,
    threads: ThreadsOption = 1,
    image_file: ImageFileOption = None,
    without_argmax: Annotated[bool, typer.Option("--without-argmax", help="The same as none.")] = False,
    with_softmax: Annotated[bool, typer.Option("--with-softmax", help="The same as softmax.")] = False,
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 18,
    device: DeviceOption = "auto",
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Export weights to ONNX and compare the file with torch; weights of qat become an INT8 file.

    The data set need not be on this disk; --input-shape fixes the shape.
    """
    from quantrim.engines.machine import describe_machine
    from quantrim.files import size_mb
    from quantrim.recipes.loading import load
    from quantrim.recipes.runs import export as run

    if (output is None) == (save_dir is None):
        raise ConfigError("give either --output or --save-dir.")
    if weights is None:
        raise ConfigError("--weights is missing: the torch weights to export.", field="weights")
    if (without_argmax or with_softmax) and output_op != "none":
        raise ConfigError("--output-op says what stands behind the logits; leave the other switches away.")
    path = output or (save_dir or Path()) / "model.onnx"
    loaded = load(read_config(config, sets, trust_code), weights, device)
    operation = "softmax" if with_softmax else output_op
    difference = run(loaded, path, shape=parse_shape(input_shape), output_op=operation, opset=opset)
    console = console_for(json_target)
    tuning = None
    if tune:
        tuning = tuned_file(console, path, engine, parse_shape(input_shape), threads, tune_seconds)
        note_precision(path)
    if image_file is not None:
        console.print(image_file_told(path, image_file, path.with_name("deploy.yaml")), markup=False)
    size = size_mb(path)
    console.print(
        f"{path}: {size:.2f} MB, largest difference from torch {difference:.1e}; "
        f"{path.with_name('deploy.yaml')}: how its images are prepared"
    )
    result: dict[str, Any] = {
        "command": "export", "output": str(path), "config": str(config), "weights": str(weights),
        "opset": opset, "output_op": operation, "size_mb": size, "difference": difference,
        "machine": describe_machine().to_json(),
    }  # fmt: skip
    result |= {} if tuning is None else {"tuning": tuning}
    emit_json(result, json_target, record_of(path, "export"))
