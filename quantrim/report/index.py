"""The index of a folder of runs: one line a result, the newest first, each with its page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from quantrim.errors import DataError
from quantrim.report.page import relative, render
from quantrim.report.results import Result, read_result

#: Files that stand beside results and are none, as they are written by name.
_OTHERS = frozenset({"plan.json", "sensitivity.json", "run.json", "forecast.json"})


@dataclass(frozen=True, slots=True)
class IndexLine:
    """A line of the index.

    Attributes:
        when: when the result was written.
        command: verb.
        name: model or folder.
        headline: what its page says first.
        source: the JSON file, relative to the index.
        page: the HTML page beside it, relative to the index; None where there is none.
    """

    when: datetime
    command: str
    name: str
    headline: str
    source: str
    page: str | None


def write_index(folder: str | Path, path: str | Path) -> tuple[IndexLine, ...]:
    """Write an HTML page that lists the results below a folder.

    Args:
        folder: searched for the JSON files that verbs wrote; other JSON is passed over.
        path: .html file.

    Returns:
        The lines, the newest first.

    Raises:
        DataError: no such folder, or it holds no result.
    """
    folder, path = Path(folder), Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    found = sorted(_results(folder), key=lambda one: one[0], reverse=True)
    if not found:
        raise DataError(f"{folder}: holds no result; write some with the JSON option of a verb.")
    entries = tuple(_entry(when, result, path) for when, result in found)
    render("index.html", path, title=f"Results in {folder.name or folder}", entries=entries)
    return entries


def _results(folder: Path) -> Iterator[tuple[datetime, Result]]:
    for source in sorted(folder.rglob("*.json")):
        if source.name in _OTHERS or source.name.endswith(".ranges.json"):
            continue
        try:
            result = read_result(source)
            result.view()
        except DataError:  # JSON of something else, or of another version: no result of ours to list
            continue
        yield datetime.fromtimestamp(source.stat().st_mtime), result


def _entry(when: datetime, result: Result, index: Path) -> IndexLine:
    assert result.source is not None
    page = next((p for p in _pages(result.source) if p.is_file() and p != index), None)
    return IndexLine(
        when,
        result.command,
        result.name,
        result.view().headline,
        relative(result.source, index),
        relative(page, index) if page else None,
    )


def _pages(source: Path) -> Iterator[Path]:
    yield source.with_suffix(".html")
    yield source.with_name("report.html")
