"""Files that are whole or not there at all: write beside the target, then rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from quantrim.errors import CheckpointError, ConfigError, DataError, QuantrimError, first_line, in_words
from quantrim.scratch import sweep_beside

T = TypeVar("T")
#: Largest image or JSON file.
MAX_FILE_BYTES = 2**30


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Temporary path beside ``path`` that is renamed to it when the block ends without an error.

    The temporary name keeps the suffix, since savers choose their format by it.

    Args:
        path: where the finished file shall stand; missing parent folders are made.

    Yields:
        Path to write to, in the same folder.

    Raises:
        QuantrimError: the folder can't be written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_beside(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise QuantrimError(
            f"{path}: can't be written ({error.strerror or error}). "
            "Choose a writable folder with enough free space."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_writable(folder: str | Path) -> None:
    """Make a folder, and see that files can be written to it before hours are spent on them.

    Raises:
        QuantrimError: it can't be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise QuantrimError(
            f"{folder}: can't be written ({error.strerror or error}). Choose a writable folder."
        ) from error


def require_onnx_output(output: str | Path, model: Any = None) -> None:
    """Refuse, before any work, an output that engines or people would stumble over.

    Args:
        output: the .onnx file that shall be written.
        model: the model it is made of; its own file must not be overwritten.

    Raises:
        ConfigError: the output is no .onnx file, a folder, or the model itself.
        QuantrimError: its folder can't be written.
    """
    output = Path(output)
    if output.is_dir():
        raise ConfigError(f"{output}: this is a folder. Give the name of a file in it.")
    if output.suffix != ".onnx":
        raise ConfigError(f"{output}: the output must end in .onnx, by which engines know the format.")
    if isinstance(model, str | Path) and output.resolve() == Path(model).resolve():
        raise ConfigError(f"{output}: the output is the model itself. Choose another name.")
    require_writable(output.parent)


def open_regular(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> IO[bytes]:
    """Open a file for reading, if it is one: a pipe would make us wait, a device may have no end.

    Raises:
        DataError: it is missing, unreadable, no regular file, or larger than ``max_bytes``.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from error
    file = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if file is None:
        os.close(handle)
        raise DataError(f"{path}: no regular file. Remove it, or leave it out.")
    if (size := os.fstat(handle).st_size) > max_bytes:
        file.close()
        raise DataError(f"{path}: {size / 1e6:.0f} MB; files of at most {max_bytes / 1e6:.0f} MB are read.")
    return file


def absence(path: Path) -> str:
    """What is wrong with a path that should be a file: a folder, or nothing there."""
    return "this is a folder, not a file." if path.is_dir() else "no such file."


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, no regular file, or not JSON.
    """
    try:
        with open_regular(path) as file:
            return json.loads(file.read())
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of 5,000 digits
        raise DataError(f"{path}: not a JSON file ({first_line(error)}).") from error


def validated(kind: type[T], value: Any, where: object, mend: str) -> T:
    """A value from a file as an instance of a pydantic model; types are not converted.

    Args:
        kind: the model.
        value: what the file holds.
        where: the file, for the message.
        mend: what the user may do, a sentence.

    Raises:
        CheckpointError: names the first field that is wrong.
    """
    from pydantic import BaseModel, ValidationError

    assert issubclass(kind, BaseModel)
    try:
        return kind.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part)[:60] for part in first["loc"])
        words = first_line(ValueError(in_words(first))).replace("\n", " ")[:200]
        raise CheckpointError(f"{where}: damaged: {field or 'it'} {words} {mend}") from error


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_mb(path: str | Path) -> float:
    """Size of a file and of the external-data file beside it (``NAME.data``), in 10^6 bytes."""
    path = Path(path)
    external = path.with_name(path.name + ".data")
    total = path.stat().st_size + (external.stat().st_size if external.exists() else 0)
    return total / 1e6
