"""``quantrim verify``: whether deployed files still reach what a baseline says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quantrim.cli.judging import AcceptOption, TaskOption
from quantrim.cli.options import EngineOption, InputShapeOption, ThreadsOption, parse_shape
from quantrim.cli.output import FELL, JsonOption, console_for, emit_json
from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from quantrim.fleet.baseline import Finding, Subject


def verify(
    baseline: Annotated[Path, typer.Option(help="JSON file of what files reached.")],
    model: Annotated[
        Path | None, typer.Argument(help="With --write: a quantized .onnx file to keep the figures of.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="With MODEL: its float model.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Keep what is measured: of MODEL, or of every file in there.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="With MODEL: inputs to judge on; random numbers by default.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="With MODEL: how many of them.")] = 32,
    deploy: Annotated[
        Path | None, typer.Option(help="With MODEL: how images are prepared; the deploy.yaml beside it.")
    ] = None,
    engine: EngineOption = "openvino",
    threads: ThreadsOption = 1,
    input_shape: InputShapeOption = None,
    task: TaskOption = None,
    accept: AcceptOption = "faithful",
    slack: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the speed that may be lost beyond the noise.")
    ] = 0.05,
    json_target: JsonOption = None,
) -> None:
    """Measure every file of a baseline again; exit code 4 where coverage, faithfulness, size or speed fell."""
    from quantrim.fleet.baseline import Baseline, Entry, findings, measure, read_baseline, write_baseline

    console = console_for(json_target)
    if (model is None) != (against is None) or (model is not None and not write):
        raise ConfigError("to keep the figures of a file, give it with --against its float model and --write.")
    kept = Baseline() if write and not baseline.exists() else read_baseline(baseline)
    if model is not None and against is not None:
        subject = _subject(
            baseline.parent, model, against, data, deploy,
            samples=samples, engine=engine, threads=threads, input_shape=parse_shape(input_shape),
            task=task, accept=accept,
        )  # fmt: skip
        subjects: Sequence[Subject] = [subject]
    else:
        subjects = [one.subject for one in kept.files]
    if not subjects:
        raise ConfigError(f"{baseline}: names no file. Write one with MODEL, --against and --write.")
    before = {(one.subject.model, one.subject.engine): one.figures for one in kept.files}
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        now = measure(subject, baseline.parent)
        known = before.get((subject.model, subject.engine))
        found = [] if known is None else list(findings(known, now, slack))
        _show(console, subject, found)
        kept = kept.with_entry(Entry(subject=subject, figures=now))
        rows.append(
            {"model": subject.model, "engine": subject.engine, "figures": now.model_dump(mode="json"),
             "findings": [one.model_dump() for one in found], "fell": any(one.fell for one in found)}
        )  # fmt: skip
    if write:
        write_baseline(kept, baseline)
        console.print(f"{baseline}: the figures of {len(kept.files)} files", markup=False)
    fell = [row["model"] for row in rows if row["fell"]]
    emit_json({"command": "verify", "baseline": str(baseline), "fell": bool(fell), "files": rows}, json_target)
    if fell and not write:
        console.print(f"[bold red]fell: {', '.join(fell)}[/bold red]")
        raise typer.Exit(FELL)


def _subject(
    home: Path, model: Path, against: Path, data: Path | None, deploy: Path | None, **settings: Any
) -> Subject:
    """A file by its paths from the baseline, so that both may be checked out anywhere."""
    from pydantic import ValidationError

    from quantrim.errors import in_words
    from quantrim.fleet.baseline import Subject

    def named(path: Path | None) -> str | None:
        return None if path is None else Path(os.path.relpath(path, home)).as_posix()

    try:
        return Subject(
            model=str(named(model)),
            against=str(named(against)),
            data=named(data),
            deploy=named(deploy),
            **settings,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        raise ConfigError(f"{field} {in_words(first)}", field=field) from error


def _show(console: Console, subject: Subject, found: Sequence[Finding]) -> None:
    console.print(f"[bold]{subject.model}[/bold] on {subject.engine}" + ("" if found else ": new"))
    table = Table(box=None, pad_edge=False)
    for title in ("figure", "baseline", "now", ""):
        table.add_column(title)
    for one in found:
        word = {True: "[bold red]FELL[/bold red]", False: "", None: "not compared"}[one.fell]
        table.add_row(one.figure, one.before, one.now, word)
    if found:
        console.print(table)
    for one in found:
        if one.why:
            console.print(f"{one.figure}: {one.why}.", markup=False)
