"""``--on ssh://host``: the same verb with the same options on other machines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from quantrim.cli.output import console_for, emit_json
from quantrim.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from quantrim.devices import Answer, Host, Job

OnOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ssh://HOST",
        help="Run there: ssh://[user@]host[:port][/path/of/quantrim]; repeatable for several at once; with "
        "commas for hosts that stand in for each other.",
    ),
]
#: Options that the other machine is given by us, or not at all.
_OURS = frozenset({"on", "json_target", "output"})
_DATA = frozenset({"data", "judge_data"})


@dataclass
class _Staged:
    """Words for the other machine, and what to send with them."""

    words: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def place(self, path: Path, files: list[Path]) -> str:
        """Send files, all below the folder of one path; its name on the host."""
        from quantrim.devices.staging import names_on_host

        folder, home = f"in/{len(self.names)}", path if path.is_dir() else path.parent
        name = folder if path.is_dir() else f"{folder}/{path.name}"
        self.files |= names_on_host(files, home, folder)
        self.names[name] = str(path)
        return name


def run_there(
    context: typer.Context,
    on: list[str],
    json_target: str | None,
    *,
    samples: int | None = None,
    native: Callable[[dict[str, Path]], list[list[str]]] | None = None,
    record: Path | None = None,
) -> list[Path]:
    """Run the verb on other machines, print what they print, and emit their JSON.

    Args:
        context: of the verb, with its options.
        on: text of each ``--on``.
        json_target: text of ``--json``.
        samples: how many samples of a folder of images the verb takes; None for all.
        native: models by name on the host → commands of the native runner; None where it has none for the verb.
        record: file that the JSON goes to without ``--json``, where one machine was asked.

    Returns:
        Output files that came back, in the order of the machines; none for a verb without.

    Raises:
        EngineError: a machine failed; those of the others were printed and emitted before.
        typer.Exit: with the code of the verb there, where that is no success.
    """
    from quantrim.devices import device_named, run_on_all

    devices = [device_named(text) for text in on]
    staged = _staged(context, samples)
    console = console_for(json_target)
    output = context.params.get("output")
    outputs = [_output_for(output, device[0].label, len(devices)) for device in devices] if output else []
    verb = context.command_path.split()[1:]
    jobs = [
        partial(_job, staged, verb, outputs[index] if outputs else None, native)
        for index in range(len(devices))
    ]
    answers, failures = [], []
    for answer in run_on_all(devices, jobs, on_lost=_lost):
        if isinstance(answer, EngineError):
            failures.append(answer)
        else:
            answers.append(answer)
            _show(console, answer)
    if answers:
        one = len(devices) == 1
        emit_json(_values(answers, one=one), json_target, record if one else None)
    if failures:
        raise EngineError("; ".join(map(str, failures)))
    code = max(answer.code for answer in answers)
    if code:
        raise typer.Exit(code)
    return outputs


def _lost(error: EngineError) -> None:
    print(f"quantrim: {error} The next host takes over.", file=sys.stderr)


def _output_for(output: Path, host: str, devices: int) -> Path:
    """``best.onnx``; of several machines, ``best.HOST.onnx``."""
    return output if devices == 1 else output.with_name(f"{output.stem}.{host}{output.suffix}")


def _staged(context: typer.Context, samples: int | None) -> _Staged:
    """The options that were given, with files by their names on the host."""
    staged = _Staged()
    for parameter in context.command.params:
        value, name = context.params.get(str(parameter.name)), str(parameter.name)
        if name in _OURS or value is None or value == parameter.default:
            continue
        option = next((word for word in parameter.opts if word.startswith("--")), None)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool):
                staged.words.append(option if one else parameter.secondary_opts[0])  # type: ignore[arg-type]
                continue
            staged.words += ([option] if option else []) + [_word(staged, name, one, samples)]
    return staged


def _word(staged: _Staged, name: str, value: Any, samples: int | None) -> str:
    """One value as a word on the host; the files that it names are sent."""
    from quantrim.devices.staging import data_files, model_files

    if name in _DATA:
        return staged.place(value, data_files(value, samples))
    if isinstance(value, Path):
        whole = name in ("model", "models", "baseline", "against")
        return staged.place(value, model_files(value) if whole else [value])
    if name == "decoder" and Path(value).is_file():
        return staged.place(Path(value), [Path(value)])
    return str(value)


def _job(
    staged: _Staged,
    verb: list[str],
    output: Path | None,
    native: Callable[[dict[str, Path]], list[list[str]]] | None,
    host: Host,
) -> Job:
    from quantrim.devices.job import OUT, RESULT, Job

    if host.native:
        if native is None:
            raise ConfigError(
                f"{host.address}: the native runner can't {' '.join(verb)}; name a quantrim there."
            )
        models = {there: staged.files[there] for there in staged.names if there in staged.files}
        commands = native(models)
    else:
        commands = [[*verb, *staged.words, *(["-o", f"{OUT}/{output.name}"] if output else [])]]
    outputs = {}
    if output is not None:
        outputs = {f"{OUT}/{file.name}": file for file in (output, output.with_suffix(".ranges.json"))}
    words = tuple((*command, "--json", RESULT.format(number)) for number, command in enumerate(commands))
    names = staged.names | {there: str(here) for there, here in outputs.items()}
    return Job(words, staged.files, outputs, names)


def _show(console: Console, answer: Answer) -> None:
    """Whose figures they are, and what the verb printed there."""
    from quantrim.engines.machine import describe_machine

    console.print(f"[bold]{answer.host.address}[/bold]")
    machine = next(_machines(answer), None)
    if machine is not None:
        here = describe_machine().versions
        versions = (
            f"{package} {there}" + (f" (here {here[package]})" if here.get(package, there) != there else "")
            for package, there in machine["versions"].items()
        )
        console.print(f"{machine['processor']}, {machine['system']}; {', '.join(versions)}", markup=False)
    console.print(answer.text.rstrip(), markup=False)


def _machines(answer: Answer) -> Iterator[Mapping[str, Any]]:
    for value in answer.values:
        for row in value if isinstance(value, list) else [value]:
            if "machine" in row:
                yield row["machine"]


def _values(answers: list[Answer], *, one: bool) -> Any:
    """JSON as of the verb itself, with the host in every row; of several machines, a list."""
    rows = [
        row | {"host": answer.host.address}
        for answer in answers
        for value in answer.values
        for row in (value if isinstance(value, list) else [value])
    ]
    return rows[0] if one and not isinstance(answers[0].values[0], list) else rows
