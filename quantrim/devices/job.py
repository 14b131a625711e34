"""One piece of work on another machine: files there, commands, results back, all through one ssh connection.

A tar stream goes in, the commands run in a temporary folder, and a tar stream of their results comes out; the
host removes the folder itself, whatever happens. It needs sh, tar, mktemp and the program.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

from quantrim.devices.host import Host
from quantrim.errors import EngineError
from quantrim.files import MAX_FILE_BYTES, atomic_path

#: Folder of results on the host, and the file in it that command number k writes its JSON to.
OUT = "out"
RESULT = OUT + "/{}.json"
#: Exit codes from here on are the host's: not found, killed, connection lost; below, the program's own.
_HOSTS_OWN = 64
_NOT_FOUND = (126, 127)
#: Characters of a host's output that are kept.
_KEPT = 200_000
_SCRIPT = """d=$(mktemp -d "${{TMPDIR:-/tmp}}/quantrim-on-XXXXXX") || exit 70
trap 'rm -rf "$d"' EXIT; trap 'exit 129' HUP INT TERM
cd "$d" && mkdir {out} && tar -xf - 1>&2 || exit 70
{commands}
tar -cf - {out}
exit $code"""


class HostLostError(EngineError):
    """A host can't be reached, died, or has no such program: another one may do the work."""


@dataclass(frozen=True, slots=True)
class Job:
    """Commands, with the files that they need and make.

    Attributes:
        commands: words behind the program's name; command number k writes JSON to ``RESULT.format(k)``. A
            command that fails ends the job.
        files: what to send: relative name on the host → file here.
        outputs: what to take back beside the JSON, where it is there: name on the host, below ``OUT`` → file
            here.
        names: words of the JSON and the output to replace: name on the host → name here.
    """

    commands: tuple[tuple[str, ...], ...]
    files: Mapping[str, Path]
    outputs: Mapping[str, Path]
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host said.

    Attributes:
        host: who it was.
        code: exit code of the last command: 0, or the program's own for an answer that is no good news.
        values: JSON of every command.
        text: what the commands printed.
    """

    host: Host
    code: int
    values: tuple[Any, ...]
    text: str


def run_on_all(
    devices: Sequence[Sequence[Host]],
    jobs: Sequence[Callable[[Host], Job]],
    on_lost: Callable[[HostLostError], None] = lambda error: None,
) -> Iterator[Answer | EngineError]:
    """Do a job on every device, all at once.

    Args:
        devices: hosts of each device, as of :func:`run_on_any`.
        jobs: of each device.
        on_lost: called, in another thread, for each host that is lost.

    Yields:
        Answers in the order of the devices; the error in place of one that failed.
    """
    with ThreadPoolExecutor(max(1, len(devices))) as pool:
        futures = [pool.submit(run_on_any, *pair, on_lost) for pair in zip(devices, jobs, strict=True)]
        for future in futures:
            try:
                yield future.result()
            except EngineError as error:
                yield error


def run_on_any(
    hosts: Sequence[Host], job: Callable[[Host], Job], on_lost: Callable[[HostLostError], None]
) -> Answer:
    """Do a job on the first host that lives to its end.

    Args:
        hosts: alike, at least one.
        job: what to do on a host.
        on_lost: called for each host that is lost while there is another.

    Raises:
        EngineError: the program refuses the job.
        HostLostError: the last host was lost, too.
    """
    for host in hosts[:-1]:
        try:
            return run_on(host, job(host))
        except HostLostError as error:
            on_lost(error)
    return run_on(hosts[-1], job(hosts[-1]))


def run_on(host: Host, job: Job) -> Answer:
    """Do a job on a host.

    Raises:
        HostLostError: it can't be reached, died, or has no such program.
        EngineError: the program refuses the job; its own words.
    """
    process = _started(host, job)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    heard: list[str] = []
    threads = [
        Thread(target=_send, args=(process.stdin, job.files), daemon=True),
        Thread(target=_listen, args=(process.stderr, heard), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        stored, broken = _received(process.stdout, job)
        code = process.wait()
    except BaseException:  # Ctrl-C, a full disk here: the host's shell ends with its connection
        process.kill()
        process.wait()
        raise
    for thread in threads:
        thread.join()
    text = _renamed("".join(heard), job.names)
    if code >= _HOSTS_OWN or (code == 0 and broken) or code < 0:
        raise HostLostError(f"{host.address}: {_loss(host, code, text)}")
    results = [stored.get(RESULT.format(number)) for number in range(len(job.commands))]
    if any(result is None for result in results):
        raise EngineError(f"{host.address}: {_last_words(text) or f'no result (exit code {code})'}")
    values = (_renamed(json.loads(result or "null"), job.names) for result in results)
    return Answer(host, code, tuple(values), text)


def _started(host: Host, job: Job) -> subprocess.Popen[bytes]:
    run = " && ".join(f"{shlex.join([host.program, *words])} </dev/null 1>&2" for words in job.commands)
    script = _SCRIPT.format(out=OUT, commands=f"{run}\ncode=$?")
    try:
        return subprocess.Popen(
            host.command(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise EngineError(
            f"{host.address}: no ssh client here ({error.filename}). Install OpenSSH's."
        ) from error


def _send(pipe: IO[bytes], files: Mapping[str, Path]) -> None:
    # a host that ends early says why by its exit code
    with contextlib.suppress(OSError), pipe, tarfile.open(fileobj=pipe, mode="w|", dereference=True) as archive:
        for name, path in files.items():
            archive.add(path, name)


def _listen(pipe: IO[bytes], heard: list[str]) -> None:
    kept = 0
    with pipe:
        for line in pipe:
            if kept < _KEPT:
                heard.append(line.decode(errors="replace"))
                kept += len(heard[-1])


def _received(pipe: IO[bytes], job: Job) -> tuple[dict[str, bytes], bool]:
    """JSON by name, outputs written in their places; and whether the stream broke off."""
    stored: dict[str, bytes] = {}
    wanted = {RESULT.format(number) for number in range(len(job.commands))}
    try:
        with pipe, tarfile.open(fileobj=pipe, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    continue
                if member.name in wanted and member.size <= MAX_FILE_BYTES:
                    stored[member.name] = content.read()
                elif member.name in job.outputs:
                    _write(content, job.outputs[member.name])
    except (tarfile.TarError, EOFError):
        return stored, True
    return stored, False


def _write(content: IO[bytes], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        while block := content.read(1 << 20):
            file.write(block)


def _loss(host: Host, code: int, text: str) -> str:
    if code in _NOT_FOUND:
        return (
            f"no program {host.program!r} there. Install quantrim on the host, or put its path behind the "
            "address: ssh://host/opt/venv/bin/quantrim."
        )
    if code == 0:
        return "what came back is cut off, or its login prints to the standard output."
    return f"lost ({_last_words(text) or f'exit code {code}'})."


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("quantrim: error: ") if lines else ""


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A value of JSON with the names of the host replaced by those here."""
    if isinstance(value, str):
        for there, here in names.items():
            value = value.replace(there, here)
        return value
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if isinstance(value, dict):
        return {key: _renamed(one, names) for key, one in value.items()}
    return value
