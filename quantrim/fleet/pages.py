"""The pages of a fleet: the matrix, and one for each file."""

from __future__ import annotations

from pathlib import Path

from quantrim.fleet.matrix import FleetResult
from quantrim.report import write_report


def write_pages(result: FleetResult, save_dir: str | Path) -> Path:
    """Write ``fleet.html`` and ``cells/*.html``; the path of the first."""
    folder = Path(save_dir)
    for cell in result.cells:
        if cell.results:
            write_report(folder / "cells" / f"{cell.name}.html", cell.name, *cell.results)
    page = folder / "fleet.html"
    write_report(page, "Fleet", result.to_json() | {"output": str(folder)})
    return page
