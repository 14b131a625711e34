"""``quantrim report``: a result's JSON as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    result: Annotated[Path, typer.Argument(help="JSON that ptq or demo wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".html file.")],
) -> None:
    """Write a self-contained HTML page of a result."""
    from quantrim.errors import DataError
    from quantrim.files import read_json
    from quantrim.report import write_report

    value = read_json(result)
    if not isinstance(value, dict) or "engines" not in value:
        raise DataError(f"{result}: no result of ptq or demo (key 'engines' is missing).")
    write_report(output, f"quantrim: {Path(value['output']).name}", value)
    typer.echo(f"{output}")
