"""``quantrim analyze``: what INT8 costs layer by layer, and what to keep float for a metric."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from quantrim.cli.calibration import (
    DeployOption,
    FitOption,
    MeanOption,
    StdOption,
    chosen_deploy,
    is_config,
    preprocess_of,
    samples_of,
)
from quantrim.cli.judging import DecoderOption, TaskOption, judging_of
from quantrim.cli.options import EngineOption, InputShapeOption, SetOption, TrustOption, parse_shape
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from quantrim.compression import Analysis


def analyze(
    model: Annotated[Path, typer.Argument(help=".onnx file or Paddle inference model folder.")],
    data: Annotated[
        Path,
        typer.Option(help="YAML configuration, whose labels judge; or images, judged by agreement with FP32."),
    ],
    engine: EngineOption = "openvino",
    samples: Annotated[int, typer.Option("--samples", "--num-images", min=1, help="That calibrate.")] = 100,
    images: Annotated[
        int | None, typer.Option(min=1, help="That judge: a whole validation set, or 200.")
    ] = None,
    target_metric: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Metric to reach, 0 to 1: say which layers must stay float."),
    ] = None,
    by: Annotated[str, typer.Option(help="Rank layers by noise (cheap) or by metric.")] = "noise",
    algo: Annotated[str, typer.Option(help="Range estimator, or all: try each, by the metric.")] = "mse",
    skip: Annotated[list[str] | None, typer.Option(help="Glob on node names that stay float anyway.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="JSON file of answers; a stopped analysis goes on.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Layers to print.")] = 15,
    deploy: DeployOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    fit: FitOption = None,
    input_shape: InputShapeOption = None,
    task: TaskOption = None,
    decoder: DecoderOption = None,
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Measure what INT8 costs MODEL as a whole and in each layer; with a target, name what must stay float."""
    from quantrim.compression import GRID, Judge, Variant
    from quantrim.compression import analyze as run
    from quantrim.errors import did_you_mean
    from quantrim.ranges.estimators import ESTIMATORS

    if algo not in (*ESTIMATORS, "all"):
        raise ConfigError(f"--algo {algo!r}{did_you_mean(algo, (*ESTIMATORS, 'all'))}")
    console = console_for(json_target)
    judge: Judge | None = None
    if is_config(data):
        from quantrim.recipes.compress import config_judge
        from quantrim.vision.config import load_config

        judge = config_judge(load_config(data, sets or (), trust_code=trust_code), images)
    elif sets or trust_code:
        raise ConfigError(f"--set and --trust-code change a configuration; {data} is none.")
    deploy = chosen_deploy([model], deploy, mean, std, fit)
    found = run(
        model,
        samples_of(data, samples),
        engine=engine,  # type: ignore[arg-type]
        judge=judge,
        judging=judging_of([model], deploy, task, decoder, "any"),
        samples=samples,
        judged=images or 200,
        variants=GRID if algo == "all" else (Variant(algo),),  # type: ignore[arg-type]
        ranking=by,  # type: ignore[arg-type]
        target=None if target_metric is None else 100 * target_metric,
        skip=skip or (),
        state=state,
        preprocess=preprocess_of([model], deploy, mean, std, fit),
        input_shape=parse_shape(input_shape),
        on_answer=lambda question, answer: console.print(f"{question[:100]}: {answer:.2f}", markup=False),
    )
    show(console, found, top)
    emit_json(found.to_json(), json_target)


def show(console: Console, found: Analysis, top: int) -> None:
    """The whole, the costliest layers, and what to keep float."""
    console.print(f"\n{found.metric} on {found.images} images, {found.engine}, points of 100:")
    console.print(f"  FP32 {found.float_points:.2f}")
    for name, points in found.int8_points.items():
        console.print(f"  INT8, {name}: {points:.2f} ({points - found.float_points:+.2f})", markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("INT8 in this layer alone", "op", "SQNR dB", found.metric):
        table.add_column(title, justify="right" if title in ("SQNR dB", found.metric) else "left")
    for layer in found.layers[:top]:
        scored = "-" if layer.points is None else f"{layer.points:.2f}"
        table.add_row(layer.module or layer.name, layer.op, f"{layer.sqnr_db:.1f}", scored)
    console.print(table)
    if found.target is None:
        return
    if found.skip is None:
        above = " FP32 itself does not reach it." if found.float_points < found.target else ""
        console.print(f"{found.target:.2f} can't be reached with any layer in INT8.{above}", style="red")
    elif not found.skip:
        console.print(f"{found.target:.2f} is reached with every layer in INT8.")
    else:
        skips = " ".join(f"--skip '{name}'" for name in found.skip)
        console.print(f"{found.target:.2f} is reached ({found.points:.2f}) with: {skips}", markup=False)
