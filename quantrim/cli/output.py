"""How every verb hands over its result: a table for people, JSON for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from quantrim.files import write_json

#: Tables and progress go to stderr when stdout carries JSON, else to stdout.
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON to FILE ('-': stdout)."),
]


def console_for(json_target: str | None) -> Console:
    """Console for people: stderr when ``--json -`` owns stdout."""
    return Console(stderr=json_target == "-", highlight=False)


def emit_json(result: dict[str, Any] | list[Any], target: str | None) -> None:
    """Write a result where ``--json`` asks for it; nothing when it wasn't given."""
    if target == "-":
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    elif target is not None:
        write_json(Path(target), result)
