"""``quantrim fleet``: many models for many targets under many budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from quantrim.cli.output import UNFAITHFUL, JsonOption, console_for, emit_json
from quantrim.errors import QuantrimError

if TYPE_CHECKING:
    from quantrim.fleet import Cell, FleetResult
    from quantrim.fleet.work import Outcome


def fleet(
    spec: Annotated[Path, typer.Argument(metavar="FLEET.yaml", help="Models, targets and budgets.")],
    save_dir: Annotated[Path, typer.Option(help="Gets fleet.json, fleet.html, the files.")] = Path(
        "output/fleet"
    ),
    cache: Annotated[
        Path | None, typer.Option(help="Finished steps, which fleets may share; SAVE_DIR/cache by default.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at once; as the file says.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Make the files on a Ray cluster.")] = False,
    json_target: JsonOption = None,
) -> None:
    """Make and time every file of a fleet; a second run does what is left. One page shows all of them."""
    from quantrim.fleet import read_fleet, run_fleet
    from quantrim.fleet.pages import write_pages

    console = console_for(json_target)

    def tell(name: str, outcome: Outcome, number: int, count: int) -> None:
        how = f"{outcome.seconds:.1f} s" if outcome.seconds else "done before"
        text = outcome.error if outcome.result is None else how
        console.print(f"[{number}/{count}] {name}: {text}", markup=False)

    result = run_fleet(
        read_fleet(spec),
        save_dir,
        cache=cache,
        workers=workers,
        ray=ray,
        bench_words=_bench_words,
        on_step=tell,
    )
    page = write_pages(result, save_dir)
    show(console, result)
    console.print(f"{page}", markup=False)
    emit_json(result.to_json(), json_target)
    if result.failed:
        raise QuantrimError(f"{result.failed} steps failed; the other files are made. Run again to retry them.")
    if result.ok < len(result.cells):
        raise typer.Exit(UNFAITHFUL)


def _bench_words(engine: str, threads: int, models: Sequence[str], shape: tuple[int, ...] | None) -> list[str]:
    words = ["bench", *models, "--engine", engine, "--threads", str(threads)]
    words += [] if shape is None else ["--input-shape", ",".join(map(str, shape))]
    return [*words, "--json"]


def show(console: Console, result: FleetResult) -> None:
    """The matrix as a table, a line for each file."""
    console.print(f"[bold]{result.headline}[/bold]")
    table = Table(box=None, pad_edge=False)
    for title in ("model", "target", "budget", "verdict", "kept", "FP32 ms", "ms", "MB"):
        table.add_column(
            title, justify="left" if title in ("model", "target", "budget", "verdict") else "right"
        )
    for cell in result.cells:
        times = (
            f"{value:.2f}" if value is not None else "-" for value in (cell.fp32_ms, cell.ms, cell.size_mb)
        )
        table.add_row(cell.model, cell.target, cell.budget, cell.verdict, _kept(cell), *times)
    console.print(table)
    for cell in result.cells:
        if cell.verdict != "ok":
            console.print(f"{cell.name}: {cell.verdict}: {cell.reason}", markup=False)


def _kept(cell: Cell) -> str:
    if cell.score is not None:
        return f"{cell.score:.1%}"
    return "-" if cell.sqnr_db is None else f"{cell.sqnr_db:.1f} dB"
