"""How every verb hands over its result: a table for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from quantrim.files import write_json, write_text

#: Tables and progress go to stderr when stdout carries JSON, else to stdout.
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON to FILE ('-': stdout)."),
]


#: Exit code where a file is not faithful.
UNFAITHFUL = 3
#: Exit code where a figure of a baseline fell.
FELL = 4
#: Columns of a table that goes into a file or a pipe, where no window sets them.
_WIDTH = 200
#: Ratio of 90th percentile to median that a quiet machine stays below.
_QUIET = 1.5


def console_for(json_target: str | None) -> Console:
    """Console for people: stderr when ``--json -`` owns stdout; lines are never broken, names never cut."""
    to_stderr = json_target == "-"
    shown = (sys.stderr if to_stderr else sys.stdout).isatty()
    return Console(stderr=to_stderr, highlight=False, soft_wrap=True, width=None if shown else _WIDTH)


def warn_of_scatter(console: Console, ratio: float) -> None:
    """Say so where times scatter so much that their medians mean little."""
    if ratio > _QUIET:
        console.print(
            f"[yellow]Times scatter (90th percentile {ratio:.1f} times the median): other work runs on this "
            "machine. Measure again on a quiet one.[/yellow]"
        )


def emit_json(result: dict[str, Any] | list[Any], target: str | None, record: Path | None = None) -> None:
    """Write a result where ``--json`` asks for it, else to the record that goes with what was made.

    Args:
        result: plain values.
        target: ``--json``.
        record: file for where that wasn't given; None to write nothing.
    """
    if target == "-":
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    elif target is not None:
        write_json(Path(target), result)
    elif record is not None:
        write_json(record, result)


def record_of(made: str | Path, command: str) -> Path:
    """``folder/int8.ptq.json`` for ``folder/int8.onnx``: the record of how a file was made or judged."""
    made = Path(made)
    return made.with_name(f"{made.stem}.{command}.json")


def emit_artefact(result: dict[str, Any], target: str | None, made: str | Path, command: str) -> None:
    """Write the JSON of a verb that made a file, and the file's model card, ``NAME.md``, beside it.

    Args:
        result: plain values.
        target: ``--json``.
        made: the file.
        command: the verb.
    """
    from quantrim.hub.cards import card_of

    emit_json(result, target, record_of(made, command))
    write_text(Path(made).with_suffix(".md"), card_of(result, made))
