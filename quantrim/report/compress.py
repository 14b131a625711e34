"""The page of ``compress``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantrim.report.charts import Bar, Dot, bars, columns, field
from quantrim.report.engines import engine_name, engine_sections, fallback_sections, picture_sections
from quantrim.report.html import Section, View, facts, folded, joined, paragraph, table

_LAYERS = 12


def view(result: Mapping[str, Any]) -> View:
    """Sections of a search: the race, every candidate, the layers, the engine's account of the chosen file."""
    sections = [
        _race(result),
        *_front(result),
        _file(result),
        _candidates(result),
        *_layers(result["layers"], _chosen(result)),
        *picture_sections(result),
        *engine_sections(result),
        *fallback_sections([engine["verdict"] for engine in result["engines"]]),
    ]
    return View(result["headline"], tuple(sections))


def _front(result: Mapping[str, Any]) -> list[Section]:
    """Milliseconds against accuracy, and what to pick to get each file that nothing beats in both."""
    timed = [one for one in result["candidates"] if one["latency_ms"]]
    number = {name: str(index) for index, name in enumerate(result.get("front", ()), 1)}
    if not number:  # a result of a version that drew none
        return []
    metric, least = result["metric"]["name"], result["metric"]["fp32"] - result["max_drop"]
    dots = [
        Dot(
            one["latency_ms"]["median"],
            one["points"],
            _kind(one),
            f"{one['name']}: {one['latency_ms']['median']:.2f} ms, {metric} {one['points']:.2f}",
            number.get(one["name"], ""),
        )
        for one in timed
    ]
    by_name = {one["name"]: one for one in timed}
    rows = [
        (
            f"{index}: {name} (chosen)" if name == result["chosen"] else f"{index}: {name}",
            f"{by_name[name]['latency_ms']['median']:.2f}",
            f"{by_name[name]['points']:.2f}",
            f"{by_name[name]['drop']:.2f}",
            f"{math.ceil(100 * by_name[name]['latency_ms']['median']) / 100:g}ms",
        )
        for name, index in number.items()
    ]
    note = paragraph(
        f"Nothing that was tried is both faster and more accurate than the numbered files; the dashed line is "
        f"what may be lost, {result['max_drop']:g} points."
    )
    heads = ("candidate", "ms", metric, "drop", "pick")
    body = joined(field(dots, "ms", floor=least), table(heads, rows), note)
    return [Section("Milliseconds against accuracy", body, wide=True)]


def _race(result: Mapping[str, Any]) -> Section:
    timed = [one for one in result["candidates"] if one["latency_ms"] and one["within"]]
    timed.sort(key=lambda one: one["latency_ms"]["median"])
    rows = [Bar(one["name"], one["latency_ms"]["median"], _kind(one)) for one in timed]
    note = paragraph(
        f"Candidates that lose at most {result['max_drop']:g} points on {engine_name(result['engine'])}; the "
        "fastest of them ran in turns with FP32."
    )
    return Section("The race", joined(bars(rows, "ms"), note), wide=True)


def _chosen(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(one for one in result["candidates"] if one["name"] == result["chosen"])


def _kind(one: Mapping[str, Any]) -> str:
    if one["precision"] == "bf16":
        return "bf16"
    return "int8" if "INT8" in one["name"] else "fp32"


def _file(result: Mapping[str, Any]) -> Section:
    metric, sizes = result["metric"], result["size_mb"]
    loss = metric["fp32"] - metric["chosen"]
    body = facts(
        [
            ("chosen", result["chosen"]),
            ("speed-up", f"{result['speedup']:.2f}x"),
            (metric["name"], f"{metric['fp32']:.2f} to {metric['chosen']:.2f}"),
            ("lost", f"{loss:.2f} of {result['max_drop']:g} points"),
            ("judged on", f"{metric['images']} pictures"),
            ("size", f"{sizes['fp32']:.2f} to {sizes['chosen']:.2f} MB"),
            ("target", result["target"]),
            ("search", f"{result['seconds']:.0f} s"),
        ]
    )
    notes = [paragraph(note, "warn") for note in result["notes"]]
    return Section("The file", joined(body, *notes), wide=True)


def _candidates(result: Mapping[str, Any]) -> Section:
    rows = [
        (
            f"{one['name']} (chosen)" if one["name"] == result["chosen"] else one["name"],
            f"{one['points']:.2f}",
            f"{one['drop']:.2f}",
            f"{one['latency_ms']['median']:.2f}" if one["latency_ms"] else "-",
            "yes" if one["within"] else "no",
            f"{one['size_mb']:.2f}",
        )
        for one in result["candidates"]
    ]
    heads = ("candidate", result["metric"]["name"], "drop", "ms", "within", "MB")
    return Section("Every candidate, in the order tried", table(heads, rows), wide=True)


def _layers(layers: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> list[Section]:
    """How good the outputs are when one layer alone runs in INT8, and which layers stay float."""
    if not layers:
        return []
    noise = {one["name"]: -10 * math.log10(max(one["noise"], 1e-20)) for one in layers}
    rows = [
        (
            one["name"],
            f"{noise[one['name']]:.1f}",
            "-" if one["gain_ms"] is None else f"{one['gain_ms']:.3f}",
            "INT8" if _kind(chosen) == "int8" and one["name"] not in chosen["float_layers"] else "float",
        )
        for one in sorted(layers, key=lambda one: -one["noise"])
    ]
    heads = ("layer", "SQNR dB", "INT8 saves ms", "runs in")
    body = joined(
        columns(list(noise.items()), "dB"),
        table(heads, rows[:_LAYERS]),
        folded(f"{len(rows) - _LAYERS} more layers", table(heads, rows[_LAYERS:])) if rows[_LAYERS:] else None,
        paragraph(
            "Signal to noise at the outputs when a layer alone runs in INT8. Layers that make most error, by "
            "themselves and for the time they save, were put back to float first."
        ),
    )
    return [Section("Layer by layer", body, wide=True)]
