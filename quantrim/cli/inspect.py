"""``quantrim inspect``: which layers run INT8, and where accuracy is lost."""

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
    preprocess_of,
    samples_of,
)
from quantrim.cli.judging import AcceptOption, DecoderOption, TaskOption, judging_of
from quantrim.cli.options import InputShapeOption, ThreadsOption, parse_shape
from quantrim.cli.output import UNFAITHFUL, JsonOption, console_for, emit_json
from quantrim.cli.remote import OnOption, run_there

if TYPE_CHECKING:
    from quantrim.engines.inspect import Inspection


def inspect(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help=".onnx file, quantized or not.")],
    engine: Annotated[str, typer.Option(help="openvino, onnxruntime or tensorrt.")] = "openvino",
    against: Annotated[Path | None, typer.Option(help="Float model to compare with.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Inputs for the comparison, as ptq's --data; random numbers by default."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of them.")] = 8,
    deploy: DeployOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    fit: FitOption = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer the engine executes.")] = False,
    input_shape: InputShapeOption = None,
    threads: ThreadsOption = 1,
    task: TaskOption = None,
    decoder: DecoderOption = None,
    accept: AcceptOption = "faithful",
    on: OnOption = None,
    json_target: JsonOption = None,
) -> None:
    """Ask an engine which layers of MODEL run INT8; with --against, measure the error of each tensor."""
    from quantrim.engines.inspect import inspect as run
    from quantrim.engines.trial import ruling
    from quantrim.engines.verdict import NAMES

    if on:
        run_there(context, on, json_target, samples=samples)
        return
    console = console_for(json_target)
    result = run(
        model,
        engine=engine,  # type: ignore[arg-type]
        against=against,
        data=None if data is None else samples_of(data, samples),
        samples=samples,
        preprocess=preprocess_of([model, *([against] if against else [])], deploy, mean, std, fit),
        input_shape=parse_shape(input_shape),
        threads=threads,
        judging=judging_of([model, *([against] if against else [])], deploy, task, decoder, accept),
    )
    verdict = result.verdict
    if result.judgement is not None:
        console.print(f"[bold]{ruling(result.judgement, NAMES[verdict.engine])}[/bold]")
        console.print(f"{result.judgement.how.capitalize()}.", markup=False)
    console.print(
        f"[bold]{verdict.int8_mac_share:.1%} of the MACs run in INT8 on {verdict.engine}"
        f"[/bold]; {verdict.int8_layers} of {verdict.layers} layers are INT8, {verdict.conversions} convert."
    )
    for fallback in verdict.fallbacks[:20]:
        name = fallback.module or fallback.node
        console.print(f"  float: {name} ({fallback.op}, {fallback.mac_share:.1%}): {fallback.reason}")
    if layers:
        _show_layers(console, result)
    _show_errors(console, result)
    emit_json(result.to_json(), json_target)
    if result.judgement is not None and not result.judgement.faithful:
        raise typer.Exit(UNFAITHFUL)


def _show_layers(console: Console, result: Inspection) -> None:
    table = Table("layer", "kind", "precision", "kernel", "ms", box=None, pad_edge=False)
    for run in result.layers:
        time = "-" if run.time_ms is None else f"{run.time_ms:.3f}"
        table.add_row(result.module(run) or run.nodes[0], run.kind, run.precision, run.kernel, time)
    console.print(table)


def _show_errors(console: Console, result: Inspection, limit: int = 10) -> None:
    if not result.errors:
        return
    worst = sorted(result.errors, key=lambda error: error.sqnr_db)[:limit]
    table = Table("layer", "tensor", "op", "SQNR dB", "cosine", box=None, pad_edge=False)
    for error in worst:
        name = error.module or error.node
        table.add_row(name, error.tensor, error.op, f"{error.sqnr_db:.1f}", f"{error.cosine:.5f}")
    console.print(f"The {len(worst)} tensors with the largest error (of {len(result.errors)}):")
    console.print(table)
    for one in result.judgement.outputs if result.judgement else ():
        top1 = "" if one.top1 is None else f", same class {one.top1:.1%}"
        console.print(
            f"output {one.output}: cosine {one.cosine:.5f}, SQNR {one.sqnr_db:.1f} dB "
            f"(nine in ten {one.sqnr_db_worst:.1f}){top1}"
        )
