"""Finished work by the hash of everything that it depends on: files by their content, settings, versions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantrim.errors import DataError, QuantrimError
from quantrim.files import read_json, sha256, write_json
from quantrim.scratch import claimed

#: Raised when what a step does changes without its settings.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of work with a result of its own.

    Attributes:
        kind: what is done.
        facts: everything that the result depends on, files by their digest; plain JSON.
        inputs: the same with paths, for whoever does it.
    """

    kind: str
    facts: Mapping[str, Any]
    inputs: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name of the result in the cache."""
        text = json.dumps([FORMAT, self.kind, self.facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Cache:
    """A folder of results; ``KEY`` is whole, ``KEY.part`` under way, ``KEY.log`` what was said.

    Args:
        folder: made where it is missing; several machines may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._notes = folder / "digests.json"
        self._digests: dict[str, list[Any]] = _read_notes(self._notes)

    def place(self, step: Step) -> Path:
        """Folder of a step's result, there or not."""
        return self.folder / step.key

    def log(self, step: Step) -> Path:
        """What a step said."""
        return self.folder / f"{step.key}.log"

    def result(self, step: Step) -> dict[str, Any] | None:
        """The JSON result of a finished step, else None."""
        file = self.place(step) / "result.json"
        return read_json(file) if file.is_file() else None

    def digest(self, files: Sequence[Path], home: Path) -> str:
        """Hash of the names and contents of files; what has its old size and time is not read again."""
        whole = hashlib.sha256()
        for file in files:
            state = file.stat()
            seen = self._digests.get(str(file.resolve()))
            if seen is None or seen[:2] != [state.st_size, state.st_mtime_ns]:
                seen = [state.st_size, state.st_mtime_ns, sha256(file)]
                self._digests[str(file.resolve())] = seen
            whole.update(f"{os.path.relpath(file, home)}\0{seen[2]}\n".encode())
        return whole.hexdigest()

    def remember(self) -> None:
        """Keep the digests for the next run."""
        write_json(self._notes, self._digests)


def _read_notes(path: Path) -> dict[str, list[Any]]:
    try:
        found = read_json(path)
    except DataError:  # missing, or cut off: everything is read anew
        return {}
    return found if isinstance(found, dict) else {}


def made_in(final: Path, make: Callable[[Path], None]) -> None:
    """Let something be made in a folder that only this process writes to, then put it in its place.

    Args:
        final: where the result shall stand, whole; ``NAME.part`` beside it is the folder of work under way,
            and what a killed run left there goes first.
        make: called with an empty folder.

    Raises:
        QuantrimError: another process is making it, or the folder can't be written.
    """
    part = final.with_name(f"{final.name}.part")
    with claimed(part):
        made = part / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        try:
            make(made)
            os.replace(made, final)
        except OSError as error:
            if not final.is_dir():  # else another machine was faster; its result is as good
                raise QuantrimError(f"{final}: can't be written ({error.strerror}).") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
