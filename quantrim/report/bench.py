"""The page of ``bench`` and of the native runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quantrim.report.charts import Bar, bars
from quantrim.report.engines import engine_name
from quantrim.report.html import Section, View, joined, paragraph, table

_Key = tuple[str, int, int]


def view(rows: Sequence[Mapping[str, Any]]) -> View:
    """Sections of bench rows: latency and throughput for each engine, thread count and batch size."""
    groups: dict[_Key, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["engine"], row["threads"], row["batch_size"]), []).append(row)
    sections = [section for key, group in groups.items() for section in _group(key, group)]
    return View(_headline(rows), tuple(sections))


def name_of(row: Mapping[str, Any]) -> str:
    """File name, with the machine where it was another one, and the precision where that isn't float32."""
    name = Path(row["model"]).name
    if "host" in row:
        name = f"{name} on {urlsplit(row['host']).netloc}"
    return name if row["precision"] == "f32" else f"{name} ({row['precision']})"


def _headline(rows: Sequence[Mapping[str, Any]]) -> str:
    best = min(rows, key=lambda row: row["latency_ms"]["median"] / row["batch_size"])
    return (
        f"Fastest for one image: {name_of(best)} on {engine_name(best['engine'])} with "
        f"{best['latency_ms']['median'] / best['batch_size']:.2f} ms, {_threads(best['threads'])}, "
        f"batch {best['batch_size']}."
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _group(key: _Key, rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    engine, threads, batch = key
    where = f"{engine_name(engine)}, {_threads(threads)}, batch {batch}"
    times = [
        Bar(name_of(row), row["latency_ms"]["median"], _kind(row, rows[0]), upper=row["latency_ms"]["p90"])
        for row in rows
    ]
    rates = [Bar(name_of(row), row["throughput"], _kind(row, rows[0])) for row in rows]
    note = paragraph(
        "Median; the thin line reaches to the 90th percentile. The first is the baseline; BF16 is yellow."
    )
    return [
        Section(f"Latency: {where}", joined(bars(times, "ms"), note)),
        Section(f"Throughput: {where}", bars(rates, "img/s", digits=1)),
        Section(f"Figures: {where}", _table(rows), wide=True),
    ]


def _kind(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    if row["precision"] == "bf16":
        return "bf16"
    return "fp32" if row is baseline else "int8"


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Speed-ups are taken against the first row."""
    base = rows[0]["latency_ms"]["median"]
    accurate = any(row.get("top1") is not None for row in rows)
    head = ["model", "median ms", "mean", "p90", "std", "img/s", "speed-up", "saved", *(["top-1"] * accurate)]
    lines = []
    for row in rows:
        latency = row["latency_ms"]
        cells = [name_of(row), *(f"{latency[key]:.2f}" for key in ("median", "mean", "p90", "std"))]
        cells += [f"{row['throughput']:.1f}", f"{base / latency['median']:.2f}x"]
        cells.append(f"{(base - latency['median']) / base:+.1%}")
        if accurate:
            cells.append("" if row.get("top1") is None else f"{row['top1']:.4f}")
        lines.append(cells)
    return table(head, lines)
