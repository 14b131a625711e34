"""What the clock said before: answers of races by machine, engine, threads and what was raced."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import asdict
from pathlib import Path

from quantrim.engines import EngineName
from quantrim.engines.machine import describe_machine
from quantrim.errors import DataError
from quantrim.files import read_json, write_json
from quantrim.rewrites.duel import Duel

#: Written into the file; another number means another form, which is not read.
_VERSION = 1


def default_path() -> Path:
    """``quantrim/tuning.json`` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "quantrim" / "tuning.json"


def scope_of(engine: EngineName, threads: int) -> str:
    """What an answer holds for: engine with version, processor with its features, and threads."""
    machine = describe_machine()
    version = importlib.metadata.version(engine)
    return f"{engine} {version} | {machine.processor} {' '.join(machine.flags)} | {threads} threads"


class Memory:
    """Answers in a JSON file, written after each new one so that a killed search goes on where it was.

    Args:
        path: the file; None remembers for this run alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers = _read(path) if path is not None else {}

    def recall(self, scope: str, key: str) -> Duel | None:
        """The answer of a race, if it was run before."""
        found = self._answers.get(scope, {}).get(key)
        return None if found is None else Duel(**found)

    def learn(self, scope: str, key: str, answer: Duel) -> None:
        """Keep an answer; those that another process has written meanwhile are kept too."""
        if self.path is not None:
            for name, answers in _read(self.path).items():
                self._answers[name] = answers | self._answers.get(name, {})
        self._answers.setdefault(scope, {})[key] = asdict(answer)
        if self.path is not None:
            write_json(self.path, {"version": _VERSION, "answers": self._answers})


def _read(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Answers of a file; none where it is missing, or of another version: they are measured again."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
        return dict(content["answers"]) if content["version"] == _VERSION else {}
    except (DataError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a file of tuning answers ({error}). Delete it; it is made again."
        ) from error
