"""The page of ``fleet``: one matrix a budget, each cell a link to the page of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from quantrim.report.html import Section, View, facts, joined, paragraph, percent, table

_CLASSES = {"ok": "ok", "failed": "bad", "unfaithful": "bad"}


def view(result: Mapping[str, Any]) -> View:
    """Sections of a fleet: the matrices, what is not ok and why, what was done."""
    cells = {(one["model"], one["target"], one["budget"]): one for one in result["cells"]}
    sections = [
        Section(f"Budget {name}: {_limits(limits)}", _matrix(result, name, cells), wide=True)
        for name, limits in result["budgets"].items()
    ]
    troubled = [one for one in result["cells"] if one["verdict"] != "ok"]
    if troubled:
        sections.append(Section("Not within their budgets", _troubles(troubled), wide=True))
    return View(result["headline"], (*sections, _steps(result)))


def _limits(limits: Mapping[str, Any]) -> str:
    if limits["max_drop"] is not None:
        words = [f"the fastest file that loses at most {limits['max_drop']:g} points"]
    else:
        words = [f"whole INT8, {limits['accept']}" if limits["accept"] != "any" else "whole INT8, unjudged"]
    words += [
        f"at most {limits[key]:g} {unit}" for key, unit in (("max_ms", "ms"), ("max_mb", "MB")) if limits[key]
    ]
    return ", ".join(words)


def _matrix(result: Mapping[str, Any], budget: str, cells: Mapping[tuple[str, str, str], Any]) -> Markup:
    rows = [
        (model, *(_cell(cells[model, target, budget]) for target in result["targets"]))
        for model in result["models"]
    ]
    note = paragraph(
        "Share of FP32's answers that the file gives, too (or signal to noise); median time and speed-up over "
        "FP32 in one race; size. Click a verdict for the file's own page."
    )
    return joined(table(("model", *result["targets"]), rows, left=1), note)


def _cell(cell: Mapping[str, Any]) -> Markup:
    mark = Markup('<span class="mark {}">{}</span>').format(
        _CLASSES.get(cell["verdict"], "over"), cell["verdict"]
    )
    if cell["page"]:
        mark = Markup('<a href="{}">{}</a>').format(cell["page"], mark)
    lines = [mark, *(Markup("<br>{}").format(text) for text in _figures(cell))]
    return joined(*lines)


def _figures(cell: Mapping[str, Any]) -> list[str]:
    found = []
    if cell["score"] is not None:
        found.append(percent(cell["score"]))
    elif cell["sqnr_db"] is not None:
        found.append(f"{cell['sqnr_db']:.1f} dB")
    if cell["ms"] is not None:
        found.append(f"{cell['ms']:.2f} ms, {cell['fp32_ms'] / cell['ms']:.2f}x")
    if cell["size_mb"] is not None:
        found.append(f"{cell['size_mb']:.2f} MB")
    return found


def _troubles(cells: list[Mapping[str, Any]]) -> Markup:
    rows = [
        (f"{one['model']}, {one['target']}, {one['budget']}", one["verdict"], one["reason"]) for one in cells
    ]
    return table(("file", "verdict", "why"), rows, left=3)


def _steps(result: Mapping[str, Any]) -> Section:
    steps = result["steps"]
    body = facts(
        [
            ("steps done", str(steps["made"])),
            ("done before", str(steps["kept"])),
            ("failed", str(steps["failed"])),
            ("time", f"{result['seconds']:.0f} s"),
        ]
    )
    return Section("Work", body, wide=True)
