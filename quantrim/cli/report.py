"""``quantrim report``: results' JSON as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json...", help="What ptq, qat, prune, compress, bench, inspect wrote."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help=".html file.")],
    title: Annotated[str | None, typer.Option(help="Heading; the first result's name by default.")] = None,
    json_target: JsonOption = None,
) -> None:
    """Write one self-contained HTML page of results; training and sensitivity beside them are drawn, too."""
    from quantrim.report import read_result, write_report

    found = [read_result(path) for path in results]
    write_report(output, title or f"quantrim: {found[0].name}", *found)
    console_for(json_target).print(f"{output}", markup=False)
    emit_json({"command": "report", "output": str(output), "results": [str(p) for p in results]}, json_target)
