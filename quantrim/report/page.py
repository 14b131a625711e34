"""One self-contained HTML page from the JSON results of the verbs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from quantrim.files import write_text
from quantrim.report.comparison import comparison
from quantrim.report.results import Json, Result, result_of


def write_report(path: str | Path, title: str, *results: Json | Result) -> None:
    """Write one page of results; sections without data are left out, links are relative to the page.

    Args:
        path: .html file.
        title: heading.
        results: values that ``ptq``, the demo, ``qat``, ``prune``, ``bench`` or ``inspect`` wrote as JSON.

    Raises:
        DataError: a value is not of one of them, or not complete.
    """
    found = [result if isinstance(result, Result) else result_of(result) for result in results]
    parts = [_part(number, result, Path(path)) for number, result in enumerate(found, 1)]
    render("page.html", path, title=title, parts=parts, comparison=comparison(found))


def render(template: str, path: str | Path, **values: Any) -> None:
    """Write a page from one of the templates of this room."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    write_text(path, environment.get_template(template).render(**values))


def _part(number: int, result: Result, page: Path) -> dict[str, Any]:
    view = result.view()
    return {
        "id": f"part{number}",
        "command": result.command,
        "name": result.name,
        "headline": view.headline,
        "sections": view.sections,
        "machine": _machine(result.rows[0].get("machine")),
        "links": [(file.name, relative(file, page)) for file in result.files()],
    }


def relative(file: Path, page: Path) -> str:
    """Link from a page to a file."""
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _machine(machine: Mapping[str, Any] | None) -> str:
    if not machine:
        return ""
    flags = ", ".join(flag for flag in machine.get("flags", ()) if flag not in ("avx2", "avx512f"))
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return " · ".join(part for part in (f"{machine['processor']}, {cores}", flags, machine["date"]) if part)
