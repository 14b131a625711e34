"""``quantrim report``: results' JSON as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json...", help="What ptq, qat, prune, bench or inspect wrote."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help=".html file.")],
    title: Annotated[str | None, typer.Option(help="Heading; the first result's name by default.")] = None,
) -> None:
    """Write one self-contained HTML page of results; training and sensitivity beside them are drawn, too."""
    from quantrim.report import read_result, write_report

    found = [read_result(path) for path in results]
    write_report(output, title or f"quantrim: {found[0].name}", *found)
    typer.echo(f"{output}")
