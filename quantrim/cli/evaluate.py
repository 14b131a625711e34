"""``quantrim evaluate``: metrics of weights or of a file on an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantrim.cli.options import (
    AllThreadsOption,
    AugmentedOption,
    CropSizeOption,
    DeviceOption,
    EngineOption,
    FlipOption,
    FlipVerticalOption,
    InputShapeOption,
    ModelOption,
    ScalesOption,
    SetOption,
    SlideOption,
    StrideOption,
    TrustOption,
    WeightsOption,
    parse_floats,
    parse_pair,
    parse_shape,
    read_config,
    refuse,
    require_cpu,
)
from quantrim.cli.output import JsonOption, console_for, emit_json, record_of
from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from rich.console import Console

    from quantrim.engines import Session
    from quantrim.recipes.loading import Loaded
    from quantrim.vision.config import Config
    from quantrim.vision.views import Predict, Views


def views_from(
    config: Config,
    scales: str | None,
    flip: bool | None,
    flip_vertical: bool | None,
    crop_size: str | None,
    stride: str | None,
    is_slide: bool = False,
) -> Views:
    """Views of the configuration's ``test_config``, changed by the options that were given."""
    from quantrim.vision.views import views_of

    if is_slide and crop_size is None:
        raise ConfigError("--is-slide needs --crop-size, the size of the window.")
    return views_of(config).changed(
        scales=None if scales is None else parse_floats(scales, "--scales"),
        flip_horizontal=flip,
        flip_vertical=flip_vertical,
        crop_size=parse_pair(crop_size, "--crop-size"),
        stride=parse_pair(stride, "--stride"),
    )


def predictor_of(
    loaded: Loaded, model: Path | None, engine: str, threads: int | None = None, device: str = "auto"
) -> Predict:
    """The file on its engine, or else the weights."""
    from quantrim.engines import open_session
    from quantrim.graph.load import model_in_folder
    from quantrim.vision.evaluate import engine_predictor, torch_predictor

    if model is None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        return torch_predictor(loaded.model)
    if engine != "tensorrt":
        require_cpu(device, f"{engine} here")
    model = model_in_folder(model)
    return engine_predictor(open_session(model, engine, threads=threads))


def evaluate(
    config: Annotated[Path | None, typer.Option("-c", "--config", help="YAML configuration.")] = None,
    weights: WeightsOption = None,
    model: ModelOption = None,
    engine: EngineOption = "openvino",
    batch_size: Annotated[int | None, typer.Option(min=1, help="8 by default; 50 with --binary.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many images: the first ones.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --limit: images drawn at random.")] = None,
    device: DeviceOption = "auto",
    scales: ScalesOption = None,
    flip: FlipOption = None,
    flip_vertical: FlipVerticalOption = None,
    crop_size: CropSizeOption = None,
    stride: StrideOption = None,
    aug_eval: AugmentedOption = False,
    is_slide: SlideOption = False,
    binary: Annotated[
        Path | None,
        typer.Option(
            "--binary", "--infer-data", help="Binary data of `quantrim binarize`, instead of --config."
        ),
    ] = None,
    input_shape: InputShapeOption = None,
    skip_batch_num: Annotated[int, typer.Option(min=0, help="With --binary: batches not timed.")] = 0,
    batch_num: Annotated[int, typer.Option(min=0, help="With --binary: batches to use; 0 for all.")] = 0,
    with_accuracy_layer: Annotated[
        bool,
        typer.Option(
            "--with-accuracy-layer",
            help="With --binary: the model takes labels and returns top-1 and top-5.",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="With --binary: a line a batch.")] = False,
    threads: AllThreadsOption = None,
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Evaluate torch weights, or an ONNX file on an engine, on a validation set or on binary data."""
    from quantrim.engines import open_session
    from quantrim.engines.machine import describe_machine
    from quantrim.graph.load import model_in_folder
    from quantrim.vision.data.binary import evaluate_binary
    from quantrim.vision.evaluate import accuracy_layer, engine_predictor

    if binary is not None:
        if model is None or config is not None or weights is not None:
            raise ConfigError("--binary is for files on engines: give --model, and no --config or --weights.")
        refuse(
            "is not for --binary, which holds prepared images.",
            limit=limit, seed=seed, scales=scales, flip=flip, flip_vertical=flip_vertical, crop_size=crop_size,
            stride=stride, aug_eval=aug_eval, is_slide=is_slide, sets=sets, trust_code=trust_code,
        )  # fmt: skip
        require_cpu(device, f"{engine} here")
        session = open_session(model_in_folder(model), engine, threads=threads)
        images, labels = _binary_data(binary, session, model, input_shape)
        console = console_for(json_target)
        metrics: dict[str, Any] = evaluate_binary(
            None if with_accuracy_layer else engine_predictor(session),
            images,
            labels,
            batch_size=batch_size or 50,
            skip_batch_num=skip_batch_num,
            batch_num=batch_num,
            layer=accuracy_layer(session) if with_accuracy_layer else None,
            on_batch=(lambda line: console.print(line, markup=False)) if verbose else None,
        )
    else:
        if config is None:
            raise ConfigError("give --config, or --binary with --model.")
        refuse(
            "is for --binary.", input_shape=input_shape, skip_batch_num=skip_batch_num or None,
            batch_num=batch_num or None, with_accuracy_layer=with_accuracy_layer, verbose=verbose,
        )  # fmt: skip
        if seed is not None and limit is None:
            raise ConfigError("--seed draws the images of --limit; without it all are used.")
        if (weights is None) == (model is None):
            raise ConfigError("give either --weights or --model.")
        from quantrim.recipes.loading import load
        from quantrim.vision.evaluate import evaluate as run

        views_given = {
            "scales": scales, "flip": flip, "flip_vertical": flip_vertical, "crop_size": crop_size,
            "stride": stride, "aug_eval": aug_eval, "is_slide": is_slide,
        }  # fmt: skip

        loaded = load(read_config(config, sets, trust_code), weights, device)
        views = views_from(loaded.config, scales, flip, flip_vertical, crop_size, stride, is_slide)
        if loaded.facts.task == "detection":
            refuse("is not for detectors, which see the image once.", **views_given)
            refuse("is not for detectors, which are judged on the first images.", seed=seed)
            metrics = _of_boxes(loaded, model, engine, threads, batch_size or 8, limit)
        else:
            predict = views.of(predictor_of(loaded, model, engine, threads, device))
            metrics = run(predict, loaded.data, batch_size=batch_size or 8, limit=limit, seed=seed)
    show_metrics(console_for(json_target), metrics)
    record = {
        "command": "evaluate",
        "model": str(model or weights),
        "config": None if config is None else str(config),
        "engine": engine if model is not None else "torch",
        "limit": limit,
        "seed": seed,
        "metrics": metrics,
        "machine": describe_machine().to_json(),
    }
    emit_json(record, json_target, _record(str(model or weights)))


def _record(judged: str) -> Path:
    """Beside what was judged where that can be written, else in ``output``."""
    local = Path(judged)
    beside = local.exists() and os.access(local.parent, os.W_OK)
    return record_of(local if beside else Path("output") / (local.name or "model"), "evaluate")


def _of_boxes(
    loaded: Loaded, model: Path | None, engine: str, threads: int | None, batch_size: int, limit: int | None
) -> dict[str, Any]:
    from quantrim.engines import open_session
    from quantrim.recipes.judging import task_judge

    judge = task_judge(loaded.config, data=loaded.data, batch_size=batch_size, limit=limit)
    if model is None:
        return judge.of_module(loaded.model)
    return judge.of_session(open_session(model, engine, threads=threads))


def show_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """One metric a line, values under each other; counts without decimals."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        values = value if isinstance(value, list) else [value]
        text = f"{value:.0f}" if name == "images" else ", ".join(f"{v:.4f}" for v in values)
        console.print(f"{name:{width}}  {text}")


def _binary_data(
    binary: Path, session: Session, model: Path, input_shape: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the shape that the model's images have."""
    from quantrim.vision.data.binary import read_binary

    image = next((port for port in session.inputs if len(port.shape) == 4), session.inputs[0])
    shape = parse_shape(input_shape) or image.shape
    if len(shape) != 4 or any(size is None for size in shape[1:]):
        raise ConfigError(f"{model}: input has shape {shape}; give --input-shape N,C,H,W.")
    return read_binary(binary, (int(shape[1] or 0), int(shape[2] or 0), int(shape[3] or 0)))
