"""``quantrim configs`` and ``quantrim examples``: the files that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, emit_json
from quantrim.vision.shipped import Kind, copy_shipped, shipped, shipped_file

_NAMES = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="All by default.")]
_FOLDER = Annotated[Path, typer.Option("--save-dir", help="Gets them, below a folder of their kind.")]


def shipped_verbs(kind: Kind, what: str) -> typer.Typer:
    """The verbs ``list``, ``show`` and ``copy`` for one kind of shipped files."""
    verbs = typer.Typer(help=f"{what} that come with the package: list, show, copy.", no_args_is_help=True)

    @verbs.command("list", help=f"Names of the {kind}.")
    def _list(json_target: JsonOption = None) -> None:
        names = shipped(kind)
        if json_target != "-":
            typer.echo("\n".join(names))
        emit_json({"command": kind, "names": names}, json_target)

    @verbs.command("show", help="Print one.")
    def _show(name: Annotated[str, typer.Argument(help="As `list` names it.")]) -> None:
        typer.echo(shipped_file(kind, name).read_text(encoding="utf-8"), nl=False)

    @verbs.command("copy", help=f"Copy them to SAVE_DIR/{kind}, where the documents name them.")
    def _copy(names: _NAMES = None, save_dir: _FOLDER = Path()) -> None:
        for path in copy_shipped(kind, names or [], save_dir):
            typer.echo(str(path))

    return verbs
