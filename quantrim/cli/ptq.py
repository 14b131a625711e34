"""``quantrim ptq``: quantize a model after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from quantrim.cli.calibration import (
    DeployOption,
    FitOption,
    ImageFileOption,
    MeanOption,
    StdOption,
    chosen_deploy,
    image_file_told,
    is_config,
    is_detector_file,
    judging_samples,
    prepared_by,
    preprocess_of,
    samples_of,
)
from quantrim.cli.judging import AcceptOption, DecoderOption, TaskOption, judging_of
from quantrim.cli.options import (
    TUNE_SECONDS,
    DeviceOption,
    InputShapeOption,
    ThreadsOption,
    TuneOption,
    TuneSecondsOption,
    option_of,
    parse_shape,
    parse_words,
    require_cpu,
)
from quantrim.cli.output import UNFAITHFUL, JsonOption, console_for, emit_artefact, warn_of_scatter
from quantrim.cli.supervise import settled
from quantrim.cli.tuning import show_trial, show_tuning, tuning_memory
from quantrim.errors import ConfigError
from quantrim.recipes.deploy import carried

if TYPE_CHECKING:
    from quantrim.engines import Session
    from quantrim.engines.trial import EngineResult
    from quantrim.graph.feeds import ImagePreprocess
    from quantrim.post_training import PtqResult


def ptq(
    model: Annotated[Path, typer.Argument(help=".onnx file or Paddle inference model folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="INT8 .onnx file to write.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Image folder, list file, .npy or .npz arrays, or a YAML configuration."),
    ] = None,
    sketches: Annotated[
        list[Path] | None, typer.Option(help="Instead of data: a shard that `calibrate` wrote; all of them.")
    ] = None,
    data_free: Annotated[
        bool, typer.Option("--data-free", help="Instead of data: images of random shapes (docs/scale.md).")
    ] = False,
    target: Annotated[
        str, typer.Option(help="portable, openvino, onnxruntime, tensorrt, or a file of `target learn`.")
    ] = "portable",
    algo: Annotated[str, typer.Option(help="kl, mse, hist, avg, min_max, abs_max or emd.")] = "mse",
    samples: Annotated[int, typer.Option("--samples", "--num-images", help="Calibration samples.")] = 100,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw them from DATA at random.")] = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a forward pass.")] = 2,
    op_types: Annotated[str | None, typer.Option(help="Quantize these ops only, e.g. conv,linear.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Glob on node names that stay float.")] = None,
    float_heads: Annotated[
        bool | None,
        typer.Option(
            "--float-heads/--int8-heads", help="Output layers stay float; so by default of detectors."
        ),
    ] = None,
    skip_tensor: Annotated[list[str] | None, typer.Option(help="Tensor whose readers stay float.")] = None,
    same_scale: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Tensors that share scale and zero point.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="TENSOR-GLOB=ALGO: another algorithm for some tensors.")
    ] = None,
    refine: Annotated[str, typer.Option(help="Any of equalize,adaround,bias, or none.")] = "bias",
    weight_algo: Annotated[str, typer.Option(help="Scales of weights: abs_max or mse.")] = "abs_max",
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale a weight, not a channel.")
    ] = False,
    hist_percent: Annotated[float, typer.Option(help="Share of values that hist keeps.")] = 0.99999,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="7-bit weights, for CPUs without VNNI.")
    ] = False,
    deploy: DeployOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    fit: FitOption = None,
    input_shape: InputShapeOption = None,
    image_file: ImageFileOption = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine to ask; those of the target.")] = None,
    threads: ThreadsOption = 1,
    tune: TuneOption = False,
    tune_seconds: TuneSecondsOption = TUNE_SECONDS,
    task: TaskOption = None,
    decoder: DecoderOption = None,
    accept: AcceptOption = "faithful",
    judge_data: Annotated[
        Path | None, typer.Option(help="Data to judge on; by default what calibration leaves of --data.")
    ] = None,
    judged: Annotated[int, typer.Option(min=1, help="Samples to judge on, at most.")] = 32,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="With a configuration: also its metric, before and after.")
    ] = False,
    mend: Annotated[
        bool,
        typer.Option("--mend/--no-mend", help="Mend an unfaithful file: equalise, or keep layers float."),
    ] = True,
    keep_outliers: Annotated[bool, typer.Option("--keep-outliers", help="Calibrate on outliers, too.")] = False,
    json_target: JsonOption = None,
) -> None:
    """Quantize MODEL to INT8 and ask the engines what became of it."""
    from quantrim.post_training import ptq as run

    require_cpu(device, "calibration")

    console = console_for(json_target)
    deploy = chosen_deploy([model], deploy, mean, std, fit)
    preprocess = preprocess_of([model], deploy, mean, std, fit)
    calibration = _calibration(data, samples, sketches, seed, data_free)
    with _progress() as progress:
        bar = progress.add_task("calibrating", total=samples)
        result = run(
            model,
            calibration,
            output,
            target=target,
            algo=algo,
            samples=samples,
            seed=seed,
            batch_size=batch_size,
            weight_algo=weight_algo,
            per_channel=not per_tensor,
            hist_percent=hist_percent,
            op_types=parse_words(op_types) or None,
            skip=skip or (),
            float_heads=is_detector_file(deploy) if float_heads is None else float_heads,
            skip_tensors=skip_tensor or (),
            same_scale=[parse_words(names) for names in same_scale or ()],
            overrides=[_override(text) for text in override or ()],
            refinements=() if refine == "none" else parse_words(refine),
            reduce_range=reduce_range,
            preprocess=preprocess,
            input_shape=parse_shape(input_shape),
            engines=engine or None,
            threads=threads,
            tune_seconds=tune_seconds if tune else 0.0,
            memory=tuning_memory() if tune else None,
            on_trial=lambda trial: show_trial(progress.console, trial),
            judging=judging_of([model], deploy, task, decoder, accept),
            judge_data=judging_samples(data, judge_data, judged),
            judged=judged,
            evaluate=_metric_of(data) if evaluate else None,
            mend=mend,
            keep_outliers=keep_outliers,
            on_batch=lambda count: progress.advance(bar, count),
        )
        settled()
        progress.update(bar, total=result.samples)
    show(console, result)
    if data is not None:
        console.print(prepared_by(data, deploy, preprocess), markup=False)
    if result.faithful and deploy is not None and (told := carried(model, deploy, output)):
        console.print(told, markup=False)
    if image_file is not None:
        prepared = deploy if deploy is not None else cast("ImagePreprocess", preprocess)
        console.print(image_file_told(Path(result.output), image_file, prepared), markup=False)
    emit_artefact(result.to_json(), json_target, result.output, "ptq")
    if not result.faithful:
        raise typer.Exit(UNFAITHFUL)


def _calibration(
    data: Path | None, samples: int, sketches: Sequence[Path] | None, seed: int | None, data_free: bool
) -> Any:
    if (data is not None) + bool(sketches) + data_free != 1:
        raise ConfigError("give one of --data, --sketches with every shard, and --data-free.")
    if data is not None:
        return samples_of(data, samples, seed)
    if data_free:
        from quantrim.post_training import DataFree

        return DataFree(seed=seed or 0)
    from quantrim.post_training.shards import Sketches, load_shard

    return Sketches.merge([load_shard(path) for path in sketches or ()])


def _metric_of(data: Path | None) -> Callable[[Session], float]:
    """The metric of a configuration's validation set, in points."""
    if data is None or not is_config(data):
        raise ConfigError("--evaluate needs labels: give a configuration as --data.")
    from quantrim.recipes.compress import config_judge
    from quantrim.vision.config import load_config

    return config_judge(load_config(data)).points


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _override(text: str) -> tuple[str, str]:
    glob, separator, algo = text.rpartition("=")
    if not separator:
        raise ConfigError(f"--override {text!r} is not of the form TENSOR-GLOB=ALGO.")
    return glob, algo


def show(console: Console, result: PtqResult) -> None:
    """Faithful or not first, then what to try, a table, and what fell back."""
    from quantrim.engines.bench import scatter

    for engine in result.engines:
        style = "bold" if engine.faithful else "bold red"
        console.print(engine.headline, style=style, markup=False)
    _what_to_try(console, result)
    for how in dict.fromkeys(engine.judgement.how for engine in result.engines):
        console.print(f"{how.capitalize()}.", markup=False)
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    sizes = result.size_mb
    console.print(
        f"{result.output}: {sizes['int8']:.2f} MB (FP32 {sizes['fp32']:.2f} MB), {result.samples} samples, "
        f"{result.algo}, {result.seconds:.1f} s"
        + (f", refined by {', '.join(result.refined)}" if result.refined else "")
    )
    if result.metric is not None:
        before, after = result.metric["fp32"], result.metric["int8"]
        console.print(
            f"On labelled images, points of 100: FP32 {before:.2f}, INT8 {after:.2f} ({after - before:+.2f})"
        )
    if result.samples < 100:
        console.print("[yellow]Fewer than 100 calibration samples; 100 to 500 are advised.[/yellow]")
    show_tuning(console, result.tuning)
    if result.engines:
        console.print(_table(result))
        races = [one.times for one in result.engines]
        times = (one for race in races for one in race.latencies.values())
        warn_of_scatter(console, scatter(times))
    for engine in result.engines:
        _fallbacks(console, engine)


def _what_to_try(console: Console, result: PtqResult) -> None:
    """Where a file is not faithful: the layers that lose most, and what the run found to be better."""
    if result.faithful:
        return
    console.print(f"The file is named {result.output}, so that nobody deploys it by accident.", markup=False)
    for layer in result.worst:
        console.print(
            f"  loses most: {layer.module or layer.node} ({layer.op}): {layer.sqnr_db:.1f} dB behind it, "
            f"{layer.lost_db:.1f} dB lost there",
            markup=False,
        )
    for advice in result.advice:
        words = advice.value if isinstance(advice.value, tuple) else (advice.value,)
        option = option_of(advice.field)
        text = ",".join(words) if advice.field == "refinements" else f" {option} ".join(words)
        enough = "faithful" if advice.faithful else "better, not enough"
        console.print(f"  try: {option} {text} ({advice.sqnr_db:.1f} dB, {enough})", markup=False)
    if not result.advice:
        console.print("  No other target, estimator or skipped layer that was tried is better.", markup=False)


def _table(result: PtqResult) -> Table:
    table = Table(box=None, pad_edge=False)
    titles = (
        *("engine", "faithful", "INT8 MACs", "FP32 ms", "BF16 ms", "INT8 ms", "INT8+BF16 ms"),
        *("speedup", "score", "SQNR dB", "nine in ten"),
    )
    for title in titles:
        table.add_column(title, justify="left" if title == "engine" else "right")
    for one in result.engines:
        times, same, scores = one.times, one.agreement[0], one.judgement.scores
        table.add_row(
            one.verdict.engine,
            "yes" if one.faithful else "NO",
            f"{one.verdict.int8_mac_share:.1%}",
            f"{times.fp32.median:.2f}",
            f"{times.bf16.median:.2f}" if times.bf16 else "-",
            f"{times.int8.median:.2f}",
            f"{times.int8_bf16.median:.2f}" if times.int8_bf16 else "-",
            f"{times.speedup:.2f}x",
            f"{min(score.value for score in scores):.1%}" if scores else "-",
            f"{same.sqnr_db:.1f}",
            f"{same.sqnr_db_worst:.1f}",
        )
    return table


def _fallbacks(console: Console, result: EngineResult, limit: int = 8) -> None:
    fallbacks = result.verdict.fallbacks
    for fallback in fallbacks[:limit]:
        console.print(
            f"  float on {result.verdict.engine}: {fallback.module or fallback.node} ({fallback.op}, "
            f"{fallback.mac_share:.1%} of MACs): {fallback.reason}"
        )
    if len(fallbacks) > limit:
        console.print(f"  ... and {len(fallbacks) - limit} more; --json names them all")
