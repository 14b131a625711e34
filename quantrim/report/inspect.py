"""The page of ``inspect``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from quantrim.report.charts import Bar, bars
from quantrim.report.engines import engine_name, fallback_sections, layer_sections
from quantrim.report.html import Section, View, folded, joined, paragraph, percent, table


def view(result: Mapping[str, Any]) -> View:
    """Sections of an engine's account of one file."""
    verdict, layers = result["verdict"], result["executed"]
    name = engine_name(verdict["engine"])
    sections = [
        *_kinds(layers),
        *_slowest(layers),
        *fallback_sections([verdict]),
        *layer_sections(result["layers"]),
        Section(f"Every layer that {name} executes", folded(f"{len(layers)} layers", _all(layers)), wide=True),
    ]
    headline = (
        f"{_ruling(result.get('judgement'), name)}"
        f"{percent(verdict['int8_mac_share'])} of the MACs run in INT8 on {name}; "
        f"{verdict['int8_layers']} of {verdict['layers']} layers are INT8, {verdict['conversions']} convert."
    )
    return View(headline, tuple(sections))


def _ruling(judgement: Mapping[str, Any] | None, engine: str) -> str:
    """Faithful or not, with the reasons; nothing where no float model was given."""
    if not judgement:
        return ""
    if judgement["faithful"]:
        return f"Faithful on {engine}. "
    return f"NOT faithful on {engine}: {'; '.join(judgement['reasons'])}. "


def _precision(word: str) -> str:
    return {"int8": "int8", "bf16": "bf16"}.get(word, "fp32")


def _kinds(layers: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Time by precision, or numbers of layers where the engine gives no times."""
    times: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for layer in layers:
        counts[layer["precision"]] += 1
        times[layer["precision"]] = times.get(layer["precision"], 0.0) + (layer["time_ms"] or 0.0)
    timed = sum(times.values()) > 0
    chosen = {word: times[word] if timed else float(count) for word, count in counts.items()}
    rows = [
        Bar(word or "none", chosen[word], _precision(word)) for word in sorted(chosen, key=lambda w: -chosen[w])
    ]
    title = "Time by precision" if timed else "Layers by precision"
    return [Section(title, bars(rows, "ms" if timed else "layers", digits=2 if timed else 0))]


def _slowest(layers: Sequence[Mapping[str, Any]], count: int = 10) -> list[Section]:
    timed = sorted((layer for layer in layers if layer["time_ms"]), key=lambda layer: -layer["time_ms"])[:count]
    if not timed:
        return []
    rows = [Bar(layer["nodes"][0], layer["time_ms"], _precision(layer["precision"])) for layer in timed]
    note = paragraph("One profiled run; green ran in INT8, grey in float.")
    return [Section("The slowest layers", joined(bars(rows, "ms", digits=3), note))]


def _all(layers: Sequence[Mapping[str, Any]]) -> Any:
    rows = [
        (layer["nodes"][0], layer["kind"], layer["precision"], layer["kernel"],
         "" if layer["time_ms"] is None else f"{layer['time_ms']:.3f}")
        for layer in layers
    ]  # fmt: skip
    return table(("layer", "kind", "precision", "kernel", "ms"), rows, left=4)
