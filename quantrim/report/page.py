"""One self-contained HTML page from the JSON results of the verbs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from quantrim.files import write_text
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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        title=title, parts=[_part(number, result, Path(path)) for number, result in enumerate(found, 1)]
    )
    write_text(path, page)


def _part(number: int, result: Result, page: Path) -> dict[str, Any]:
    view = result.view()
    return {
        "id": f"part{number}",
        "command": result.command,
        "name": result.name,
        "headline": view.headline,
        "sections": view.sections,
        "machine": _machine(result.rows[0].get("machine")),
        "links": [(file.name, _relative(file, page)) for file in result.files()],
    }


def _relative(file: Path, page: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _machine(machine: Mapping[str, Any] | None) -> str:
    if not machine:
        return ""
    flags = ", ".join(flag for flag in machine.get("flags", ()) if flag not in ("avx2", "avx512f"))
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return " · ".join(part for part in (f"{machine['processor']}, {cores}", flags, machine["date"]) if part)
