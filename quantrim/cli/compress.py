"""``quantrim compress``: the fastest file within a drop of accuracy."""

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
)
from quantrim.cli.judging import DecoderOption, TaskOption, judging_of
from quantrim.cli.options import (
    TUNE_SECONDS,
    InputShapeOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    TrustOption,
    TuneOption,
    TuneSecondsOption,
    parse_shape,
)
from quantrim.cli.output import JsonOption, console_for, emit_artefact, record_of, warn_of_scatter
from quantrim.cli.remote import OnOption, run_there
from quantrim.cli.tuning import show_trial, tuning_memory
from quantrim.errors import ConfigError
from quantrim.recipes.deploy import carried, deploy_of

#: Images that judge where no validation set does.
JUDGED = 200

if TYPE_CHECKING:
    from quantrim.compression import Candidate, CompressResult, Tuning
    from quantrim.recipes.compress import Training
    from quantrim.vision.config import Config


def compress(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(help=".onnx file, Paddle inference model folder, or .pth weights of --data's model."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help=".onnx file to write.")],
    data: Annotated[
        Path,
        typer.Option(
            help="YAML configuration, whose labels judge; or image folder, list file, .npy or .npz, judged "
            "by agreement with FP32."
        ),
    ],
    max_drop: Annotated[
        float, typer.Option(min=0, max=100, help="Points of accuracy (of 100) that may be lost.")
    ] = 0.5,
    engine: Annotated[str, typer.Option(help="openvino or onnxruntime: where everything counts.")] = "openvino",
    samples: Annotated[int, typer.Option(min=1, help="Pictures that calibrate.")] = 100,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures that judge: all of a validation set, or 200 others, by default."),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Glob on node names that stay float.")] = None,
    iters: Annotated[
        int, typer.Option(min=0, help="With .pth weights: iterations of each training; 0 trains nothing.")
    ] = 0,
    pruning_ratio: Annotated[
        list[float] | None, typer.Option(help="With --iters: also prune this share of the latency.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of training; each verb's own.")] = None,
    save_dir: Annotated[Path, typer.Option(help="Where training leaves its checkpoints.")] = Path("output"),
    deploy: DeployOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    fit: FitOption = None,
    input_shape: InputShapeOption = None,
    threads: ThreadsOption = 1,
    task: TaskOption = None,
    decoder: DecoderOption = None,
    tune: TuneOption = False,
    tune_seconds: TuneSecondsOption = TUNE_SECONDS,
    pick: Annotated[
        str | None,
        typer.Option(metavar="MS|DROP", help="3.5ms: the most accurate so fast; 0.8: the fastest losing less."),
    ] = None,
    seed: SeedOption = None,
    sets: SetOption = None,
    trust_code: TrustOption = False,
    on: OnOption = None,
    json_target: JsonOption = None,
) -> None:
    """Find the fastest file of MODEL within a drop of accuracy, both measured on the engine."""
    console = console_for(json_target)
    if on:
        for made in run_there(
            context,
            on,
            json_target,
            samples=samples + (images or JUDGED),
            record=record_of(output, "compress"),
        ):
            _carry(console, model, chosen_deploy([model], deploy, mean, std, fit), made)
        return
    pick_ms, max_drop = picked(pick, max_drop)
    tuning = tuning_of(console, tune_seconds) if tune else None

    def tell(candidate: Candidate) -> None:
        points = f"{candidate.points:.2f} ({0.0 - candidate.drop:+.2f})"
        console.print(f"{candidate.name}: {points}, {candidate.size_mb:.2f} MB", markup=False)

    given = deploy is not None or mean is not None or std is not None or fit is not None
    if is_config(data):
        from quantrim.recipes.compress import compress_config
        from quantrim.vision.config import load_config

        if given or input_shape is not None:
            raise ConfigError(f"{data} says how images are prepared; leave --deploy, --mean, ... away.")
        config = load_config(data, sets or (), trust_code=trust_code)
        result = compress_config(
            config,
            model,
            output,
            max_drop=max_drop,
            engine=engine,  # type: ignore[arg-type]
            samples=samples,
            judged=images,
            skip=skip or (),
            training=_training(config, iters, pruning_ratio, learning_rate, save_dir, seed),
            threads=threads,
            tuning=tuning,
            pick_ms=pick_ms,
            on_candidate=tell,
        )
        carried_from = None if model.suffix == ".pth" else deploy_of(model, None)
    else:
        from quantrim.compression import compress as run

        if iters or pruning_ratio or learning_rate or sets or model.suffix == ".pth":
            raise ConfigError(f"{data} has no labels to train on or judge by; give a configuration as --data.")
        result = run(
            model,
            data,
            output,
            max_drop=max_drop,
            engine=engine,  # type: ignore[arg-type]
            samples=samples,
            judged=images or JUDGED,
            skip=skip or (),
            preprocess=preprocess_of([model], deploy, mean, std, fit),
            input_shape=parse_shape(input_shape),
            threads=threads,
            tuning=tuning,
            pick_ms=pick_ms,
            judging=judging_of([model], deploy, task, decoder, "any"),
            on_candidate=tell,
        )
        carried_from = chosen_deploy([model], deploy, mean, std, fit)
    _carry(console, model, carried_from, output)
    show(console, result)
    emit_artefact(result.to_json(), json_target, output, "compress")


def _carry(console: Console, model: Path, deploy: Path | None, output: Path) -> None:
    if deploy is not None and (told := carried(model, deploy, output)):
        console.print(told, markup=False)


def picked(text: str | None, max_drop: float) -> tuple[float | None, float]:
    """Milliseconds, and points that may be lost: ``3.5ms`` bounds the time, ``0.8`` the points."""
    if text is None:
        return None, max_drop
    try:
        if text.endswith("ms"):
            return float(text.removesuffix("ms")), max_drop
        return None, float(text)
    except ValueError as error:
        raise ConfigError(f"--pick {text!r} is neither a time such as 3.5ms nor points such as 0.8.") from error


def tuning_of(console: Console, seconds: float) -> Tuning:
    """How rewrites are looked for, and told of."""
    from quantrim.compression import Tuning

    return Tuning(seconds, tuning_memory(), lambda trial: show_trial(console, trial))


def _training(
    config: Config,
    iters: int,
    ratios: list[float] | None,
    learning_rate: float | None,
    save_dir: Path,
    seed: int | None,
) -> Training | None:
    """What may be trained; None for nothing."""
    from quantrim.recipes.compress import Training
    from quantrim.recipes.runs import best_key
    from quantrim.vision.train import TrainSettings

    if not iters:
        if ratios or learning_rate is not None:
            raise ConfigError("--pruning-ratio and --learning-rate need --iters; nothing is trained without.")
        return None
    settings = TrainSettings(
        iters,
        config.batch_size,
        max(1, iters // 4),
        seed=config.seed if seed is None else seed,
        best_key=best_key(config),
    )
    return Training(settings, tuple(sorted(ratios or ())), learning_rate, save_dir)


def show(console: Console, result: CompressResult) -> None:
    """The headline, a table of all candidates, and what to know before trusting them."""
    from quantrim.engines.bench import scatter

    console.print(f"[bold]{result.headline}[/bold]")
    if result.verdict is not None:
        share = result.verdict.verdict.int8_mac_share
        console.print(f"{share:.1%} of its MACs run in INT8.", markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("candidate", result.metric, "drop", "median ms", "speed-up", "MB"):
        table.add_column(title, justify="left" if title == "candidate" else "right")
    first = result.candidates[0].latency_ms
    for one in result.candidates:
        times = one.latency_ms
        table.add_row(
            f"{one.name} *" if one.name == result.chosen else one.name,
            f"{one.points:.2f}",
            f"{one.drop:.2f}",
            f"{times.median:.2f}" if times else "-",
            f"{first.median / times.median:.2f}x" if times and first else "-",
            f"{one.size_mb:.2f}",
        )
    console.print(table)
    if len(result.front) > 1:
        console.print(
            f"None is faster and more accurate: {', '.join(one.name for one in result.front)}.", markup=False
        )
    for note in result.notes:
        console.print(f"[yellow]{note}[/yellow]")
    warn_of_scatter(console, scatter(one.latency_ms for one in result.candidates if one.latency_ms))
    console.print(f"{result.output}: judged on {result.images} pictures, {result.seconds:.0f} s", markup=False)
