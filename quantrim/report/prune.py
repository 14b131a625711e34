"""The page of ``prune``, and of its survey (a dry run)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantrim.report.charts import Bar, bars, curve, widths
from quantrim.report.engines import picture_sections, training_section
from quantrim.report.html import Section, View, folded, joined, paragraph, percent, table, tile, tiles

_OPEN_WIDTHS = 24
_CURVES = 60


def view(result: Mapping[str, Any]) -> View:
    """Sections of a pruning run.

    Args:
        result: JSON value of the run; "sensitivity" (its ``sensitivity.json``) and "training" (the history of
            retraining) are drawn where they are there.
    """
    if "survey" in result:
        return _survey(result["survey"])
    key = _metric_key(result.get("training", ()))
    training = training_section("Retraining", result.get("training", ()), key, result["metric"]["before"])
    sections = [
        _cost(result),
        _metric(result, key or "metric"),
        *([training] if training else []),
        *picture_sections(result),
        *_widths(result["groups"]),
        *_sensitivity(result.get("sensitivity"), result["groups"]),
        *_frozen(result["frozen"]),
    ]
    return View(_headline(result, key or "metric"), tuple(sections))


def _metric_key(history: Sequence[Mapping[str, float]]) -> str | None:
    """The metric of a retraining history: whatever stands in it beside iteration, loss and rate."""
    found = (key for entry in history for key in entry if key not in ("iteration", "loss", "lr"))
    return next(found, None)


def _headline(result: Mapping[str, Any], key: str) -> str:
    flops, times, metric = result["flops"], result["latency_ms"], result["metric"]
    saved = 1 - flops["after"] / flops["before"]
    final = metric[result["chosen"]]
    speed = times["before"] / times["after"]
    text = (
        f"{percent(saved)} fewer FLOPs, {speed:.2f}x as fast ({times['before']:.2f} to {times['after']:.2f} "
        f"ms), {key} {metric['before']:.4f} to {final:.4f} ({final - metric['before']:+.4f})."
    )
    return text if speed > 1 else f"The pruned model is not faster here; try the objective latency. {text}"


def _cost(result: Mapping[str, Any]) -> Section:
    rows, drawn = [], []
    facts = (
        ("GFLOPs", result["flops"], 1e9),
        ("million parameters", result["params"], 1e6),
        ("latency, ms", result["latency_ms"], 1.0),
    )
    for name, pair, unit in facts:
        before, after = pair["before"] / unit, pair["after"] / unit
        rows.append((name, f"{before:.3f}", f"{after:.3f}", percent(1 - after / before)))
        drawn.append(Bar(name, after / before, "int8", text=f"{percent(after / before)} left"))
    asked = f"Asked for {percent(result['requested_ratio'])}, achieved {percent(result['achieved_ratio'])}."
    body = joined(table(("", "before", "after", "saved"), rows), _whole(drawn), paragraph(asked))
    return Section("Cost", body)


def _whole(drawn: Sequence[Bar]) -> Any:
    """Bars on a scale that ends at the unpruned model."""
    return bars([Bar("before", 1.0, "fp32", text="100 %"), *drawn], "")


def _metric(result: Mapping[str, Any], key: str) -> Section:
    metric = result["metric"]
    names = (("before", "before"), ("pruned", "pruned, not retrained"), ("retrained", "retrained"))
    rows = [
        (name + (" (kept)" if word == result["chosen"] else ""), f"{metric[word]:.4f}",
         f"{metric[word] - metric['before']:+.4f}")
        for word, name in names
    ]  # fmt: skip
    seconds = result["seconds"]
    note = (
        f"Sensitivity took {seconds['sensitivity']:.0f} s ({result['evaluations']} evaluations), "
        f"retraining {seconds['retraining']:.0f} s. The file differs from torch by at most "
        f"{result['parity']:.1e}."
    )
    return Section("Accuracy", joined(table(("state", key, "to before"), rows), paragraph(note)))


def _widths(groups: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not groups:
        return []
    rows = [(group["name"], group["before"], group["after"]) for group in groups]
    body = widths(rows[:_OPEN_WIDTHS])
    if len(rows) > _OPEN_WIDTHS:
        body += folded(f"{len(rows) - _OPEN_WIDTHS} more groups", widths(rows[_OPEN_WIDTHS:]))
    touched = sum(before != after for _, before, after in rows)
    note = paragraph(f"{touched} of {len(rows)} groups became narrower; pale is what was removed.")
    return [Section("Channels of each group", joined(body, note), wide=True)]


def _sensitivity(found: Mapping[str, Any] | None, groups: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not found or not found["groups"]:
        return []
    removed = {group["name"]: 1 - group["after"] / group["before"] for group in groups}
    curves = {
        name: [(0.0, 0.0), *((point["ratio"], point["loss"]) for point in one["points"])]
        for name, one in found["groups"].items()
    }
    top = max((loss for points in curves.values() for _, loss in points), default=0.0) or 1.0
    order = sorted(curves, key=lambda name: -max(loss for _, loss in curves[name]))
    figures = [
        tile(
            curve(curves[name], top, removed.get(name)),
            f"{name}: {max(loss for _, loss in curves[name]):+.3g} at {percent(curves[name][-1][0], 0)}",
        )
        for name in order[:_CURVES]
    ]
    note = paragraph(
        f"Rise of the loss over {found['baseline']:.4g} as channels of one group are removed, 0 to 100 %; the "
        "most sensitive groups first. One scale for all, heights are square roots; the upright line is the "
        "share that was removed."
    )
    return [Section("Sensitivity", joined(tiles(figures), note), wide=True)]


def _frozen(frozen: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not frozen:
        return []
    rows = [(one["layer"], one["reason"], str(one["channels"])) for one in frozen]
    return [
        Section("Layers that were left alone", table(("layer", "why", "channels"), rows, left=2), wide=True)
    ]


def _survey(survey: Mapping[str, Any]) -> View:
    groups, flops = survey["prunable"], survey["flops"]
    channels = sum(group["channels"] for group in groups)
    rows = [(group["layer"], str(group["channels"]), str(group["units"])) for group in groups]
    sections = (
        Section("What can be pruned", table(("group", "channels", "units"), rows), wide=True),
        *_frozen(survey["frozen"]),
    )
    return View(
        f"{len(groups)} groups with {channels} channels can be pruned; of {flops['now'] / 1e9:.3f} GFLOPs at "
        f"most {percent(survey['largest_ratio'])} can be removed.",
        sections,
    )
