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
from quantrim.report.html import Section, View, facts, joined, paragraph, table, tile, tiles

_HISTOGRAMS = 24


def view(result: Mapping[str, Any]) -> View:
    """Sections of a result of post-training quantization; those without data are left out."""
    engines = result.get("engines", ())
    training = training_section("Training", result.get("training", ()), "mIoU", None)
    sections = [
        *engine_sections(result),
        _file(result),
        *_accuracy(result.get("accuracy", ()), result.get("metric", "mIoU")),
        *picture_sections(result),
        *([training] if training else []),
        *fallback_sections([engine["verdict"] for engine in engines]),
        *layer_sections(result.get("layers", ())),
        *_histograms(result.get("histograms", ())),
    ]
    headline = engines[0]["headline"] if engines else "Quantized; no engine was asked."
    return View(headline, tuple(sections))


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
