"""``quantrim target``: rules of an engine that nobody described, learned from the engine itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from quantrim.cli.options import Command, ThreadsOption
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.remote import OnOption, run_there

app = typer.Typer(
    help="Rules of an engine: where quantizers stand for it.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("learn", cls=Command)
def learn(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write, for --target.")],
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine to ask; several: the file shall be fast on each. All.")
    ] = None,
    threads: ThreadsOption = 1,
    on: OnOption = None,
    json_target: JsonOption = None,
) -> None:
    """Ask engines by small graphs what they run in INT8 on this machine, and write it as a target.

    Then: quantrim ptq MODEL --target FILE.json ...
    """
    from quantrim.engines import EngineName, installed_engines
    from quantrim.probing import Answer, learn_target
    from quantrim.targets import differences, save_target

    if on:
        run_there(context, on, json_target)
        return
    engines = cast("tuple[EngineName, ...]", tuple(engine or installed_engines()))
    console = console_for(json_target)

    def tell(answer: Answer) -> None:
        mark = "yes" if answer.holds else "no "
        console.print(f"{mark} {answer.rule} {answer.op}: {answer.why}", markup=False)

    target, answers = learn_target(output.stem, engines, threads=threads, on_answer=tell)
    save_target(target, output)
    lines = differences(target)
    console.print(f"{output}: {len(answers)} answers of {', '.join(engines)}", markup=False)
    for line in lines:
        console.print(line, markup=False)
    said = [{"rule": a.rule, "op": a.op, "holds": a.holds, "why": a.why} for a in answers]
    emit_json(
        {"command": "target learn", "output": str(output), "answers": said, "differs": lines}, json_target
    )
