"""Several results side by side: one row each, in the order of what matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantrim.report.html import Section, joined, paragraph, table
from quantrim.report.results import Result

_HEAD = ("result", "engine", "faithful", "FP32 ms", "INT8 ms", "speed", "FP32 MB", "INT8 MB", "SQNR dB")


def comparison(results: Sequence[Result]) -> Section | None:
    """A card that compares the quantized files among some results, engine by engine; None below two of them."""
    rows = [row for result in results for row in _rows(result)]
    if len({row[0] for row in rows}) < 2:
        return None
    note = paragraph("Milliseconds of different results were taken in races of their own: compare the ratios.")
    return Section("Side by side", joined(table(_HEAD, rows, left=3), note), wide=True)


def _rows(result: Result) -> list[tuple[str, ...]]:
    value = result.value
    if not isinstance(value, Mapping) or not value.get("engines"):
        return []
    sizes: Mapping[str, float] = value.get("size_mb", {})
    return [
        (
            result.name,
            engine["verdict"]["engine"],
            {True: "yes", False: "no"}.get(engine.get("faithful"), "-"),  # type: ignore[arg-type]
            _number(engine.get("latency_ms", {}).get("fp32")),
            _number(engine.get("latency_ms", {}).get("int8")),
            _number(engine.get("speedup"), "x"),
            _number(sizes.get("fp32")),
            _number(sizes.get("int8")),
            _number(_sqnr(engine)),
        )
        for engine in value["engines"]
    ]


def _sqnr(engine: Mapping[str, Any]) -> float | None:
    found = [one["sqnr_db"] for one in engine.get("agreement", ()) if one.get("sqnr_db") is not None]
    return min(found, default=None)


def _number(value: Any, unit: str = "") -> str:
    if isinstance(value, Mapping):
        value = value.get("median")
    return "-" if value is None else f"{value:.2f}{unit}"
