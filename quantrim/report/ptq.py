"""The page of ``ptq`` and of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantrim.report.charts import histogram
from quantrim.report.engines import (
    engine_name,
    engine_sections,
    fallback_sections,
    layer_sections,
    picture_sections,
    training_section,
)
from quantrim.report.html import Section, View, facts, joined, paragraph, percent, table, tile, tiles

_HISTOGRAMS = 24


def view(result: Mapping[str, Any]) -> View:
    """Sections of a result of post-training quantization; those without data are left out."""
    engines = result.get("engines", ())
    training = training_section("Training", result.get("training", ()), "mIoU", None)
    headline = engines[0]["headline"] if engines else "Quantized; no engine was asked."
    sections = [
        *([_glance(result)] if engines else []),
        *engine_sections(result, said=headline),
        _file(result),
        *_accuracy(result.get("accuracy", ()), result.get("metric", "mIoU")),
        *picture_sections(result),
        *([training] if training else []),
        *fallback_sections([engine["verdict"] for engine in engines]),
        *layer_sections(result.get("layers", ())),
        *_histograms(result.get("histograms", ())),
    ]
    return View(headline, tuple(sections))


def _glance(result: Mapping[str, Any]) -> Section:
    """Accuracy beside speed, an engine after the other, then the size."""
    told = []
    metric = result.get("metric")
    if isinstance(metric, Mapping):
        told.append(("metric, points of 100", f"{metric['fp32']:.2f} → {metric['int8']:.2f}"))
    for one in result["engines"]:
        scores = one.get("judgement", {}).get("scores", ())
        least = min(scores, key=lambda score: score["value"], default=None)
        name = engine_name(one["verdict"]["engine"])
        if least is not None:
            told.append((f"{name}: {least['name']}", percent(least["value"])))
        times = one["latency_ms"]
        told.append((f"{name}: FP32 → INT8", f"{times['fp32']:.2f} → {times['int8']:.2f} ms"))
    sizes = result["size_mb"]
    told.append(("size", f"{sizes['fp32']:.2f} → {sizes['int8']:.2f} MB"))
    return Section("At a glance", facts(told), wide=True)


def _file(result: Mapping[str, Any]) -> Section:
    sizes = result["size_mb"]
    body = facts(
        [
            ("FP32", f"{sizes['fp32']:.2f} MB"),
            ("INT8", f"{sizes['int8']:.2f} MB"),
            ("calibration", f"{result['samples']} samples, {result['seconds']:.1f} s"),
            ("ranges", result["algo"]),
            ("refined by", ", ".join(result["refined"]) or "nothing"),
            ("target", result["target"]),
        ]
    )
    few = "Fewer than 100 calibration samples; 100 to 500 are advised." if result["samples"] < 100 else None
    return Section("The file", joined(body, paragraph(few) if few else None), wide=True)


def _accuracy(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Section]:
    if not rows:
        return []
    cells = []
    for row in rows:
        fp32, int8 = row["fp32"], row["int8"]
        cells.append((engine_name(row["name"]), f"{fp32:.4f}", f"{int8:.4f}", f"{int8 - fp32:+.4f}"))
    body = table(("engine", "FP32", "INT8", "difference"), cells)
    return [Section(f"Accuracy on validation pictures ({metric})", body, wide=True)]


def _histograms(histograms: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not histograms:
        return []
    shown = histograms[:_HISTOGRAMS]
    figures = [
        tile(histogram(one["edges"], one["counts"], one["low"], one["high"]),
             f"{one['tensor']}: {one['low']:.3g} to {one['high']:.3g}")
        for one in shown
    ]  # fmt: skip
    note = paragraph(
        f"Heights are square roots of counts; the first {len(shown)} of {len(histograms)} tensors."
    )
    return [Section("Activations and the range that is kept", joined(tiles(figures), note), wide=True)]
