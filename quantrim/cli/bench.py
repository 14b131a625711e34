"""``quantrim bench``: latency of models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quantrim.cli.options import InputShapeOption, ThreadsOption, parse_shape
from quantrim.cli.output import JsonOption, console_for, emit_json, warn_of_scatter


def bench(
    models: Annotated[list[Path], typer.Argument(help="Model files.")],
    engine: Annotated[
        list[str] | None, typer.Option(help="openvino, onnxruntime, tensorrt; repeatable.")
    ] = None,
    threads: ThreadsOption = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed rounds.")] = 10,
    repeat: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 50,
    streams: Annotated[int, typer.Option(min=1, help="Above 1: throughput of that many parallel runs.")] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Also time BF16 mode (OpenVINO).")] = False,
    baseline: Annotated[Path | None, typer.Option(help="Model that speed-ups are taken against.")] = None,
    input_shape: InputShapeOption = None,
    json_target: JsonOption = None,
) -> None:
    """Time MODELS in turns, so that a noisy machine is noisy for all of them."""
    from quantrim.engines.bench import bench as run
    from quantrim.engines.bench import scatter
    from quantrim.engines.machine import describe_machine

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
    emit_json([row.to_json() | {"machine": machine.to_json()} for row in rows], json_target)
