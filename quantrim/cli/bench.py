"""``quantrim bench``: latency of models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quantrim.cli.options import InputShapeOption, ThreadsOption, parse_shape
from quantrim.cli.output import JsonOption, console_for, emit_json, warn_of_scatter
from quantrim.cli.remote import OnOption, run_there
from quantrim.errors import ConfigError


def bench(
    context: typer.Context,
    models: Annotated[list[Path], typer.Argument(help="Model files.")],
    engine: Annotated[
        list[str] | None, typer.Option(help="openvino, onnxruntime, tensorrt; repeatable.")
    ] = None,
    threads: ThreadsOption = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed rounds.")] = 10,
    repeat: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 50,
    streams: Annotated[int, typer.Option(min=1, help="Above 1: throughput of that many parallel runs.")] = 1,
    objective: Annotated[
        str, typer.Option(help="latency; or throughput: also finds the streams and batch that give most.")
    ] = "latency",
    bf16: Annotated[bool, typer.Option("--bf16", help="Also time BF16 mode (OpenVINO).")] = False,
    baseline: Annotated[Path | None, typer.Option(help="Model that speed-ups are taken against.")] = None,
    input_shape: InputShapeOption = None,
    on: OnOption = None,
    json_target: JsonOption = None,
) -> None:
    """Time MODELS in turns, so that a noisy machine is noisy for all of them."""
    from quantrim.engines.bench import bench as run
    from quantrim.engines.bench import scatter
    from quantrim.engines.machine import describe_machine

    if on:
        run_there(context, on, json_target, native=partial(_native_commands, context.params))
        return
    if objective not in ("latency", "throughput"):
        raise ConfigError(f"--objective {objective!r}; legal: latency, throughput.")
    files = [*([baseline] if baseline else []), *(m for m in models if m != baseline)]
    rows = run(
        files,
        engines=engine or ["openvino"],
        threads=threads,
        batch_size=batch_size,
        warmup=warmup,
        repeat=repeat,
        shape=parse_shape(input_shape),
        precisions=("f32", "bf16") if bf16 else ("f32",),
        streams=streams,
    )
    console = console_for(json_target)
    machine = describe_machine()
    console.print(machine.line())
    table = Table(box=None, pad_edge=False)
    for title in ("model", "engine", "threads", "batch", "median ms", "mean", "p90", "std", "img/s", "speedup"):
        table.add_column(title, justify="left" if title in ("model", "engine") else "right")
    first = {row.engine: row for row in reversed(rows)}
    for row in rows:
        latency, base = row.latency_ms, first[row.engine].latency_ms.median
        saved = (base - latency.median) / base
        table.add_row(
            row.model + (" (bf16)" if row.precision == "bf16" else ""),
            row.engine,
            str(row.threads),
            str(row.batch_size),
            *(f"{value:.2f}" for value in (latency.median, latency.mean, latency.p90, latency.std)),
            f"{row.throughput:.1f}",
            f"{base / latency.median:.2f}x ({saved:+.0%})",
        )
    console.print(table)
    warn_of_scatter(console, scatter(row.latency_ms for row in rows))
    values = [row.to_json() | {"machine": machine.to_json()} for row in rows]
    if objective == "throughput":
        for value in values:
            value["by_throughput"] = _by_throughput(console, value, parse_shape(input_shape))
    emit_json(values, json_target)


def _by_throughput(
    console: Console, row: Mapping[str, Any], shape: tuple[int, ...] | None
) -> list[dict[str, Any]]:
    """Settings that were tried for a row's model, the one of most images per second first, which is told."""
    from quantrim.engines.bench import by_throughput

    tried = by_throughput(
        row["model"], row["engine"], threads=row["threads"], shape=shape, precision=row["precision"]
    )
    best = tried[0]
    console.print(
        f"{row['model']} on {row['engine']}: {best.rate:.1f} img/s with {best.streams} stream(s) of batch "
        f"{best.batch_size}, the most of {len(tried)} settings",
        markup=False,
    )
    return [asdict(one) for one in tried]


def _native_commands(options: Mapping[str, Any], models: Iterable[str]) -> list[list[str]]:
    """One run of the native runner for each model and engine, with the options that it knows."""
    shape = parse_shape(options["input_shape"])
    common = {
        "batch_size": options["batch_size"],
        "num_threads": options["threads"],
        "warmup_size": options["warmup"],
        "repeat": options["repeat"],
        "streams": options["streams"],
    } | ({} if shape is None else {"input_shape": ",".join(map(str, shape[1:]))})
    return [
        [f"--infer_model={model}", f"--engine={engine}", f"--precision={precision}"]
        + [f"--{name}={value}" for name, value in common.items()]
        for model in models
        for engine in options["engine"] or ["openvino"]
        for precision in ("file", "bf16")[: 1 + (options["bf16"] and engine == "openvino")]
    ]
