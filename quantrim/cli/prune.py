"""``quantrim prune``: remove channels, retrain, keep the better state, verify what is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from quantrim.cli.options import (
    BatchSizeOption,
    ConfigOption,
    DeviceOption,
    InputShapeOption,
    LearningRateOption,
    NumWorkersOption,
    SaveDirOption,
    SaveIntervalOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    TrustOption,
    WeightsOption,
    parse_shape,
    read_config,
    train_settings,
)
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from quantrim.pruning.forecast import Forecast
    from quantrim.recipes.prune import PruneRecipe, PruneRun


def prune(
    config: ConfigOption,
    weights: WeightsOption = None,
    save_dir: SaveDirOption = Path("output"),
    pruning_ratio: Annotated[
        float | None,
        typer.Option(help="Share of FLOPs (or latency) to remove."),
    ] = None,
    channel_ratio: Annotated[
        float | None, typer.Option(help="Instead: share of channels to remove from every layer.")
    ] = None,
    retraining_iters: Annotated[int, typer.Option(min=0, help="0: no retraining.")] = 1000,
    criterion: Annotated[str, typer.Option(help="l1, l2, fpgm, bn_scale, taylor, fisher or random.")] = "l1",
    objective: Annotated[str, typer.Option(help="What the ratio counts: flops or latency.")] = "flops",
    method: Annotated[str, typer.Option(help="marginal, or threshold (PaddleSlim's).")] = "marginal",
    sensitivity: Annotated[bool, typer.Option(help="Measure what each layer's channels are worth.")] = True,
    ratios: Annotated[
        str | None,
        typer.Option(help="Shares of a layer's channels to measure, as 0.1,0.3,0.5; by need if not given."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What is measured: loss, error (top-1, pixels), iou, ap (boxes).")
    ] = "loss",
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Images that it is measured on; 32 large to 1024 small ones if not given."),
    ] = None,
    workers: Annotated[str, typer.Option(help="Processes that measure, or 'ray'.")] = "1",
    steps: Annotated[int, typer.Option(min=1, help="Rounds of pruning and retraining.")] = 1,
    align: Annotated[int, typer.Option(min=1, help="Widths are multiples of this.")] = 8,
    min_channels: Annotated[int, typer.Option(min=1, help="Layers this narrow are left alone.")] = 8,
    max_ratio: Annotated[float, typer.Option(help="Largest share of a layer's channels to remove.")] = 0.9,
    blocks: Annotated[bool, typer.Option("--blocks", help="Whole residual blocks may go too.")] = False,
    protect: Annotated[list[str] | None, typer.Option(help="Layer whose channels stay; globs too.")] = None,
    distill: Annotated[bool, typer.Option(help="Learn from the unpruned model.")] = True,
    batch_size: BatchSizeOption = None,
    learning_rate: LearningRateOption = None,
    num_workers: NumWorkersOption = 0,
    save_interval: SaveIntervalOption = 1000,
    engine: Annotated[str, typer.Option(help="openvino or onnxruntime: where latency counts.")] = "openvino",
    threads: ThreadsOption = 1,
    input_shape: InputShapeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with retraining in SAVE_DIR.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what can be pruned.")] = False,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Remove channels from a trained model and retrain it; SAVE_DIR is then the input of qat and export."""
    from quantrim.pruning import Engine, Limits, PruneConfig
    from quantrim.recipes.prune import Listener, PruneRecipe, forecast_config, prune_config

    loaded = read_config(config, sets, trust_code)
    console = console_for(json_target)
    _require_ratio(pruning_ratio, channel_ratio, needed=not dry_run)
    settings = train_settings(
        loaded,
        iters=retraining_iters,
        batch_size=batch_size,
        seed=seed,
        save_interval=save_interval,
        num_workers=num_workers,
        device=device,
    )
    request = PruneConfig(
        ratio=pruning_ratio,
        channel_ratio=channel_ratio,
        criterion=criterion,
        method=cast("Literal['marginal', 'threshold']", method),
        limits=Limits(align, min_channels, max_ratio, blocks),
        protect=tuple(protect or ()),
        seed=settings.seed,
    )
    recipe = PruneRecipe(
        request,
        objective=cast("Literal['flops', 'latency']", objective),
        measure_sensitivity=sensitivity,
        ratios=None if ratios is None else _shares(ratios),
        metric=metric,
        samples=samples,
        workers="ray" if workers == "ray" else _count(workers),
        steps=steps,
        distill=distill,
        learning_rate=learning_rate,
        engine=Engine(engine, threads),
        shape=parse_shape(input_shape),
    )
    with Meter() as meter:
        listener = Listener(
            timed=lambda done, total: meter("timing layers", done, total),
            forecast=lambda found: show_forecast(console, found, recipe),
            measured=lambda progress: meter(
                "measuring sensitivity", progress.done, progress.total, progress.seconds_left
            ),
        )
        if dry_run:
            found = forecast_config(loaded, weights, recipe, listener=listener)
            show_forecast(console, found, recipe)
            emit_json({"command": "prune", **found.to_json()}, json_target)
            return
        run = prune_config(loaded, weights, settings, save_dir, recipe, listener=listener, resume=resume)
    show(console, run, settings.best_key)
    emit_json(run.to_json(), json_target)


class Meter:
    """How far the work before retraining is: a bar in a terminal, lines in a log.

    A bar closes when its work is done, so that retraining can show its own.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Bar | None = None
        self._tenth = 0

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._tenth = None, 0

    def __call__(self, title: str, done: int, total: int, seconds_left: float | None = None) -> None:
        """Show that ``done`` of ``total`` pieces of some work are done."""
        if self._console.is_terminal:
            self._draw(title, done, total)
        elif 10 * done // total > self._tenth:  # a line for each tenth
            self._tenth = 10 * done // total
            left = "" if seconds_left is None or done == total else f", about {seconds_left:.0f} s left"
            self._console.print(f"{title}: {done} of {total}{left}")
        if done == total:
            self.__exit__()

    def _draw(self, title: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = Bar(console=self._console, transient=True)
            self._bar.add_task(title, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)


def _require_ratio(pruning_ratio: float | None, channel_ratio: float | None, needed: bool) -> None:
    given = [ratio for ratio in (pruning_ratio, channel_ratio) if ratio is not None]
    if len(given) > 1 or (needed and not given):
        raise ConfigError("give either --pruning-ratio (share of FLOPs or latency) or --channel-ratio.")


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--ratios {text!r}; give shares between commas, such as 0.1,0.3,0.5.") from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--workers {text!r}; give a number of processes, at least 1, or ray.")
    return int(text)


def show_forecast(console: Console, found: Forecast, recipe: PruneRecipe, limit: int = 8) -> None:
    """What can be pruned, what can't and why, how far it goes, and what measuring will take."""
    looked, graph = found.survey, found.survey.graph
    groups = [group for group in graph.groups if not group.is_block]
    channels = sum(group.channels for group in groups)
    if graph.blocks:
        console.print(f"{len(graph.blocks)} residual blocks may go as a whole")
    console.print(
        f"{len(groups)} groups of {channels} channels can be pruned; FLOPs {looked.flops / 1e9:.3f} G, "
        f"at least {looked.least_flops / 1e9:.3f} G (largest ratio {looked.largest_ratio:.2f})"
    )
    for frozen in graph.frozen[:limit]:
        console.print(f"  stays: {frozen.layer} ({frozen.channels} channels): {frozen.reason}", markup=False)
    if len(graph.frozen) > limit:
        console.print(f"  ... and {len(graph.frozen) - limit} more; --dry-run --json FILE names them all")
    for path, reason in list(graph.unexported.items())[:limit]:
        console.print(f"  analysed in pieces: {path or 'the whole model'}: {reason}", markup=False)
    if found.latency is not None:
        console.print(
            f"latency {found.latency.full_ms:.2f} ms, predicted to be at least {found.least_ms:.2f} ms "
            f"(largest ratio {found.largest_ratio:.2f})"
        )
    if (ratio := recipe.config.ratio) is not None:
        can = "within reach" if ratio <= found.largest_ratio else "[red]out of reach[/red]"
        console.print(f"ratio {ratio:.4g} of {recipe.objective}: {can}")
    if found.estimate is not None:
        console.print(
            f"measuring: at most {found.estimate.evaluations} evaluations of {_samples(found)} images, about "
            f"{found.estimate.seconds:.0f} s on one worker"
        )


def _samples(found: Forecast) -> int:
    return 0 if found.job is None else found.job.probe.samples


def show(console: Console, run: PruneRun, metric: str) -> None:
    """What changed, and what it costs."""
    result, before, after = run.result, run.latency_ms["before"], run.latency_ms["after"]
    table = Table(box=None, pad_edge=False)
    for title in ("", "before", "after", "saved"):
        table.add_column(title, justify="left" if not title else "right")
    rows = (
        ("GFLOPs", result.flops["before"] / 1e9, result.flops["after"] / 1e9),
        ("million parameters", result.params["before"] / 1e6, result.params["after"] / 1e6),
        ("latency, ms", before, after),
    )
    for title, old, new in rows:
        table.add_row(title, f"{old:.3f}", f"{new:.3f}", f"{1 - new / old:.1%}")
    console.print(table)
    console.print(f"ratio asked {result.requested:.3f}, achieved {result.achieved:.3f}")
    if result.blocks:
        console.print(f"blocks removed: {', '.join(result.blocks)}", markup=False)
    if result.cliff is not None:
        console.print(result.cliff.sentence())
    values = run.metric
    console.print(
        f"{metric}: {values['before']:.4f} before, {values['pruned']:.4f} pruned, {values['retrained']:.4f} "
        f"retrained; kept: {run.chosen}"
    )
    if after >= before:
        console.print("[yellow]The pruned model is not faster here; try --objective latency.[/yellow]")
    console.print(f"{run.output}: model.pth, plan.json, model.onnx (parity {run.parity:.1e})")
