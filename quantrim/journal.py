"""Answers of a long run, kept beside its output until it ends: a run that was killed goes on where it was.

A journal is a folder ``.NAME.resume`` beside the output. Every answer is a file of its own, written whole, and
bears the digest of all that it depends on (model, data, settings, versions, machine): what was asked otherwise
is not found, and what is damaged is made again. The folder goes when the run ends by itself, well or not; it
stays where the run was interrupted or killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quantrim.errors import DataError
from quantrim.files import read_json, sha256, write_json
from quantrim.scratch import claimed

T = TypeVar("T")
#: A short run keeps nothing: work is saved when so many seconds have passed since the last time.
EVERY_S = 60.0
#: What computes; another version may compute otherwise.
_PACKAGES = ("quantrim", "numpy", "onnxruntime", "openvino", "torch")


def digest(*parts: Any) -> str:
    """SHA-256 of values: arrays, bytes and files (given as paths) by their content, others by ``repr``."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"array {part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).data)
        elif isinstance(part, bytes):
            found.update(b"bytes %d " % len(part) + part)
        else:
            words = f"file {sha256(part)}" if isinstance(part, Path) else f"{type(part).__name__} {part!r}"
            found.update(words.encode())
        found.update(b"\0")
    return found.hexdigest()


def versions() -> tuple[str, ...]:
    """Installed versions of what computes, "-" where it is missing."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            found.append("-")
    return tuple(found)


class Journal:
    """The folder, made when the first answer is kept.

    Args:
        folder: where answers lie.
        claims: holds the claim on the folder until the run ends.
    """

    def __init__(self, folder: Path, claims: contextlib.ExitStack) -> None:
        self.folder, self._claims, self._open = folder, claims, False
        self._saved_at = time.monotonic()

    def open(self) -> None:
        """Make the folder and keep other runs out of it.

        Raises:
            QuantrimError: another process writes there.
        """
        if not self._open:
            self._claims.enter_context(claimed(self.folder))
            self._open = True

    def due(self) -> bool:
        """Whether it is time to save what was done since the last time; asking starts the clock anew if so."""
        if time.monotonic() - self._saved_at < EVERY_S:
            return False
        self._saved_at = time.monotonic()
        return True

    def path(self, name: str, suffix: str) -> Path:
        """Where the file of an answer lies; its folder is there afterwards.

        Args:
            name: digest of all that the answer depends on.
            suffix: of the file.
        """
        self.open()
        return self.folder / f"{name[:40]}{suffix}"

    def answer(self, name: str, kind: Any, make: Callable[[], T], files: Sequence[Path] = ()) -> T:
        """The answer that was kept under a name, or else a new one, kept from now on.

        Args:
            name: digest of all that the answer depends on.
            kind: its type, for validation; such as ``dict[str, float]``.
            make: gives it; a plain JSON value.
            files: written by ``make`` as well; the answer holds while they are as they were.
        """
        path = self.path(name, ".json")
        found = _recalled(path, name, kind, files)
        if found is not None:
            return found[0]
        value = make()
        kept = {file.name: sha256(file) for file in files if file.exists()}
        write_json(path, {"name": name, "value": value, "files": kept})
        return value


def _recalled(path: Path, name: str, kind: Any, files: Sequence[Path]) -> tuple[Any] | None:
    """The value in a file, alone in a tuple; None where it is missing, damaged or of something else."""
    if not path.is_file():
        return None
    from pydantic import TypeAdapter, ValidationError

    try:
        entry = read_json(path)
        if entry["name"] != name or entry["files"] != {one.name: sha256(one) for one in files if one.exists()}:
            return None
        return (TypeAdapter(kind).validate_json(json.dumps(entry["value"])),)
    except (DataError, ValidationError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def journal_beside(output: str | Path) -> Iterator[Journal]:
    """The journal of the run that makes an output; what it holds goes when the block ends.

    It stays where the block is interrupted (KeyboardInterrupt) or its process killed.

    Raises:
        QuantrimError: another run makes the same output.
    """
    folder = Path(output).with_name(f".{Path(output).name}.resume")
    with contextlib.ExitStack() as claims:
        journal = Journal(folder, claims)
        if folder.exists():
            journal.open()
        try:
            yield journal
        except Exception:
            _empty(folder)
            raise
        _empty(folder)
    with contextlib.suppress(OSError):  # never made, or somebody else's already
        folder.rmdir()


def _empty(folder: Path) -> None:
    """Remove what the folder holds; its lock goes with the claim."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != ".quantrim.lock":
            path.unlink(missing_ok=True)
