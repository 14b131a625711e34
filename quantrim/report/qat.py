"""The page of ``qat``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantrim.report.engines import (
    engine_name,
    engine_sections,
    fallback_sections,
    picture_sections,
    training_section,
)
from quantrim.report.html import Section, View, facts, joined, paragraph, percent, table


def view(result: Mapping[str, Any]) -> View:
    """Sections of a run of quantization-aware training.

    Args:
        result: JSON value of the run; "training", the history of its ``run.json``, is drawn where it is there.
    """
    engines = result.get("engines", ())
    training = training_section(
        "Training curve", result.get("training", ()), result["metric"], result["metrics"]["fp32"]
    )
    sections = [
        _accuracy(result),
        *([training] if training else []),
        *picture_sections(result),
        *engine_sections(result),
        _file(result),
        *fallback_sections([engine["verdict"] for engine in engines]),
    ]
    return View(_headline(result), tuple(sections))


def _headline(result: Mapping[str, Any]) -> str:
    key, metrics = result["metric"], result["metrics"]
    final = metrics.get("engine", metrics["exported"])
    where = "on the engine" if "engine" in metrics else "in simulation"
    text = f"{key} {metrics['fp32']:.4f} in FP32, {final:.4f} in INT8 {where} ({final - metrics['fp32']:+.4f})."
    if result["chosen"] == "ptq":
        return f"Training did not beat calibration alone, so the calibrated state was exported. {text}"
    return text


def _accuracy(result: Mapping[str, Any]) -> Section:
    metrics, key = result["metrics"], result["metric"]
    engine = result["engines"][0]["verdict"]["engine"] if result.get("engines") else ""
    best = f" (best, iteration {result['best_iteration']})" if result.get("best_iteration") else ""
    names = {
        "fp32": "FP32",
        "ptq": "fake-quant, calibrated only (PTQ)",
        "qat": f"fake-quant, trained{best}",
        "exported": "fake-quant, the exported state",
        "engine": f"INT8 file on {engine_name(engine)}",
    }
    rows = [
        (name, f"{metrics[word]:.4f}", f"{metrics[word] - metrics['fp32']:+.4f}")
        for word, name in names.items()
        if word in metrics
    ]
    loss = None
    if "engine" in metrics:
        change = metrics["engine"] - metrics["exported"]
        loss = paragraph(f"Simulation to engine: {change:+.4f}.")
    codes = paragraph(f"{percent(result['equal_codes'], 2)} of the integer codes of file and module are equal.")
    return Section("Accuracy", joined(table(("state", key, "to FP32"), rows), loss, codes))


def _file(result: Mapping[str, Any]) -> Section:
    sizes = result["size_mb"]
    body = facts(
        [
            ("FP32", f"{sizes['fp32']:.2f} MB"),
            ("INT8", f"{sizes['int8']:.2f} MB"),
            ("smaller by", f"{sizes['fp32'] / sizes['int8']:.2f}x"),
            ("state", {"ptq": "calibrated", "qat": "trained"}[result["chosen"]]),
            ("training", f"{result['seconds']:.0f} s"),
        ]
    )
    return Section("The file", body, wide=True)
