"""Cards that several results share: what an engine said, float layers, layer errors, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from quantrim.engines.race import RACERS
from quantrim.engines.verdict import NAMES
from quantrim.report.advice import recommendation, what_would_help
from quantrim.report.charts import Bar, Line, bars, columns, lines
from quantrim.report.html import Section, bullets, joined, paragraph, percent, png, table, tile, tiles

_LINEAR = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_FALLBACKS = 40


def engine_name(word: str) -> str:
    """The engine's name for people."""
    return NAMES.get(word, word)


def engine_sections(result: Mapping[str, Any], said: str = "") -> list[Section]:
    """One card for each engine of a result; a good headline that the page has ``said`` is not repeated."""
    flags = result["machine"]["flags"] if result.get("machine") else None
    return [_engine(engine, result.get("target"), flags, said) for engine in result.get("engines", ())]


def _engine(engine: Mapping[str, Any], target: str | None, flags: Sequence[str] | None, said: str) -> Section:
    times, verdict = engine["latency_ms"], engine["verdict"]
    rows = [
        Bar(words, times[name], name.partition("_")[0]) for name, words in RACERS.items() if times.get(name)
    ]
    agreement = Markup("").join(paragraph(_agreement(one)) for one in engine.get("agreement", ()))
    executed = (
        f"{verdict['int8_layers']} of {verdict['layers']} layers ran in INT8, {verdict['conversions']} only "
        "convert. Medians of one race in turns of random order."
    )
    hints = what_would_help(engine, target, flags)
    advice = None
    if hints:
        advice = paragraph(f"{recommendation(times)} What would help INT8:", "warn") + bullets(hints)
    faithful = engine.get("faithful", True)
    first = paragraph(engine["headline"], "headline" if faithful else "headline warn")
    body = joined(
        None if faithful and engine["headline"] == said else first,
        *_judged(engine),
        bars(rows, "ms"),
        advice,
        agreement,
        paragraph(executed),
    )
    return Section(engine_name(verdict["engine"]), body)


def _judged(engine: Mapping[str, Any]) -> list[Markup]:
    """Where the task came from, and the work of each kind of product; nothing in results of older versions."""
    told = []
    judgement, ops = engine.get("judgement"), engine["verdict"].get("ops", ())
    if judgement:
        told.append(paragraph(f"{judgement['how'].capitalize()}."))
    if ops:
        shares = (f"{op['op']} {percent(op['mac_share'])} ({percent(op['int8_share'])} in INT8)" for op in ops)
        told.append(paragraph(f"Multiply-accumulates: {', '.join(shares)}."))
    return told


def _agreement(one: Mapping[str, Any]) -> str:
    same = "" if one["top1"] is None else f", same arg max {percent(one['top1'])}"
    worst = f" (nine in ten {one['sqnr_db_worst']:.1f})" if "sqnr_db_worst" in one else ""
    return f"output {one['output']}: SQNR {one['sqnr_db']:.1f} dB{worst}, cosine {one['cosine']:.4f}{same}"


def _name(node: Mapping[str, Any]) -> str:
    """Path of a node's module, where the result tells it."""
    return str(node.get("module") or node["node"])


def fallback_sections(verdicts: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The linear layers that stayed float, for each engine that has some."""
    sections = []
    for verdict in verdicts:
        found = verdict["fallbacks"]
        if not found:
            continue
        rows = [(_name(f), f["op"], f["reason"], percent(f["mac_share"], 2)) for f in found[:_FALLBACKS]]
        rest = len(found) - len(rows)
        note = paragraph(f"... and {rest} more, each with less work.") if rest else None
        body = joined(table(("layer", "op", "reason", "share of MACs"), rows, left=3), note)
        sections.append(Section(f"Float layers on {engine_name(verdict['engine'])}", body, wide=True))
    return sections


def layer_sections(layers: Sequence[Mapping[str, Any]]) -> list[Section]:
    """SQNR of the tensors that linear layers make, in order of execution, and the worst of all tensors."""
    if not layers:
        return []
    linear = [(_name(layer), layer["sqnr_db"]) for layer in layers if layer["op"] in _LINEAR]
    worst = sorted(layers, key=lambda layer: layer["sqnr_db"])[:8]
    rows = [(one["tensor"], one["op"], f"{one['sqnr_db']:.1f}", f"{one['cosine']:.5f}") for one in worst]
    body = joined(
        columns(linear, "dB") if linear else None,
        table(("tensor with the largest error", "op", "SQNR dB", "cosine"), rows, left=2),
    )
    return [Section("Signal to quantization noise, layer by layer", body, wide=True)]


def picture_sections(result: Mapping[str, Any]) -> list[Section]:
    """What the float and the quantized file make of a few pictures; nothing where none were compared."""
    figures = [
        tile(
            png(view["png_base64"], f"{one['caption']} {view['name']}".strip()),
            f"{one['caption']}: " + ", ".join(filter(None, (view["name"], view["text"]))),
        )
        for one in result.get("pictures", ())
        for view in one["views"]
    ]
    return [Section("Predictions", tiles(figures), wide=True)] if figures else []


def training_section(
    title: str, history: Sequence[Mapping[str, float]], key: str | None, reference: float | None
) -> Section | None:
    """Loss, and the metric with a dashed line at its reference, over the iterations; None without data.

    Args:
        title: heading.
        history: entries with "iteration" and "loss", or with "iteration" and metrics.
        key: the metric.
        reference: value to compare with, such as FP32's.
    """
    losses = [(one["iteration"], one["loss"]) for one in history if "loss" in one]
    values = [(one["iteration"], one[key]) for one in history if key in one] if key else []
    parts = []
    if losses:
        parts.append(paragraph("training loss") + lines([Line("", losses, "fp32")], "iteration"))
    if values:
        drawn = [Line(str(key), values, "int8")]
        if reference is not None:
            ends = sorted({values[0][0], values[-1][0]})
            drawn.append(Line("FP32", [(x, reference) for x in ends], "fp32", dashed=True))
        parts.append(paragraph(f"{key} on the validation set") + lines(drawn, "iteration", digits=4))
    return Section(title, joined(*parts)) if parts else None
