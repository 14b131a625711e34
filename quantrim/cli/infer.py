"""``quantrim infer``: a file and its deploy.yaml run on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.options import (
    AllThreadsOption,
    DeviceOption,
    EngineOption,
    ModelOption,
    parse_floats,
    require_cpu,
)
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.predict import ColorOption, PredictionsOption, line_of
from quantrim.errors import ConfigError, did_you_mean

_PRECISIONS = {"fp32": "f32", "f32": "f32", "bf16": "bf16", "int8": None}


def infer(
    model: Annotated[Path | None, typer.Argument(help="Model file with a deploy.yaml beside it.")] = None,
    images: Annotated[Path | None, typer.Argument(help="Image, folder, or list file.")] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="The deploy.yaml.")] = None,
    model_option: ModelOption = None,
    images_option: Annotated[
        Path | None, typer.Option("--images", "--image-path", help="Image, folder, or list file.")
    ] = None,
    save_dir: PredictionsOption = Path("output/result"),
    engine: EngineOption = "openvino",
    device: DeviceOption = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16, of layers that are not INT8; the file's own by default.")
    ] = None,
    threads: AllThreadsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of equal size in a batch.")] = 1,
    score: Annotated[float, typer.Option(min=0, max=1, help="Detection: boxes below are not told.")] = 0.25,
    custom_color: ColorOption = None,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Also time the model alone.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="With --benchmark: runs.")] = 50,
    json_target: JsonOption = None,
) -> None:
    """Predict IMAGES with MODEL as its deploy.yaml says; neither configuration nor data set are needed."""
    from quantrim.recipes.infer import Running, infer, located
    from quantrim.recipes.predict import palette_of
    from quantrim.vision.palette import PALETTE

    if config is not None and images is None and images_option is None:
        model, images = None, model
    source = images_option or images
    if source is None:
        raise ConfigError("give the images to predict.")
    if precision is not None and precision not in _PRECISIONS:
        raise ConfigError(f"--precision {precision!r}{did_you_mean(precision, _PRECISIONS)}")
    if engine != "tensorrt":
        require_cpu(device, f"{engine} here")
    path, deployment = located(model_option or model, config)
    running = Running(
        engine,
        _PRECISIONS[precision] if precision else None,  # type: ignore[arg-type]
        threads,
        batch_size,
        repeat if benchmark else 0,
    )
    palette = PALETTE if custom_color is None else palette_of(parse_floats(custom_color, "--custom-color"))
    run = infer(path, deployment, source, save_dir, running, palette=palette, score=score)
    console = console_for(json_target)
    for result in run.results:
        console.print(line_of(result), markup=False)
    console.print(
        f"{len(run.results)} images, {run.model_ms:.2f} ms an image in the model alone ({engine}, "
        f"{run.precision}), peak memory {run.peak_memory_mb:.0f} MB; {save_dir / 'infer.json'}"
    )
    if (times := run.latency) is not None:
        spread = f"mean {times.mean:.2f}, p90 {times.p90:.2f}"
        console.print(f"benchmark, {repeat} runs: median {times.median:.2f} ms a batch, {spread}")
    emit_json(run.to_json(), json_target)
