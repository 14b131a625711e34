"""``quantrim reproduce``: published figures measured again, by a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantrim.cli.options import EngineOption, ThreadsOption, parse_words
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from quantrim.recipes.reproduce import Reproduced


def reproduce(
    table: Annotated[str | None, typer.Argument(help="Table of the manifest; without one, list them.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="These rows only.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="ROW=FILE", help="A file instead of the manifest's address."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge on the first so many images.")] = None,
    save_dir: Annotated[Path, typer.Option(help="Gets the files of each row.")] = Path("output/reproduce"),
    engine: EngineOption = "openvino",
    threads: ThreadsOption = 1,
    json_target: JsonOption = None,
) -> None:
    """Measure published models again, FP32 beside its published figure, and INT8; code 1 where one fails."""
    from quantrim.recipes.reproduce import read_table, tables, to_json
    from quantrim.recipes.reproduce import reproduce as run

    console = console_for(json_target)
    if table is None:
        for name in tables():
            found = read_table(name)
            console.print(f"{name}: {', '.join(row.name for row in found.rows)}", markup=False)
            console.print(f"  data: {found.data}", markup=False)
        return
    files = dict(_pair(text) for text in weights or ())

    def show(row: Reproduced) -> None:
        console.print(line_of(row), markup=False)

    done = run(save_dir, table, data, rows=parse_words(rows), weights=files, engine=engine,  # type: ignore[arg-type]
               threads=threads, limit=limit, on_row=show)  # fmt: skip
    console.print(f"{save_dir / 'reproduce.json'}", markup=False)
    emit_json(to_json(table, done), json_target)
    if any(row.failure or row.within is False for row in done):
        raise typer.Exit(1)


def _pair(text: str) -> tuple[str, str]:
    name, separator, file = text.partition("=")
    if not separator or not file:
        raise ConfigError(f"--weights {text!r} is not of the form ROW=FILE.")
    return name, file


def line_of(row: Reproduced) -> str:
    """``resnet50: top1 FP32 0.7612 (published 0.7613, reproduced), INT8 0.7601, 3.6x, faithful``."""
    if row.fp32 is None or row.int8 is None or row.speedup is None:
        return f"{row.row}: failed: {row.failure}"
    word = {True: "reproduced", False: "NOT reproduced", None: f"not compared: {row.images} images"}[row.within]
    spread = "" if row.error is None else f" ± {row.error:.4f}"
    return (
        f"{row.row}: {row.metric} FP32 {row.fp32:.4f}{spread} (published {row.expected:.4f}, {word}), "
        f"INT8 {row.int8:.4f} ({row.int8 - row.fp32:+.4f}), {row.speedup:.2f}x, "
        f"{'faithful' if row.faithful else 'NOT faithful'}"
    )
