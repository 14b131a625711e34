"""Arrays in .npy and .npz files, read sample by sample: a file of any size costs as much as what is used.

numpy's own reader takes the whole of an .npz member into memory, and what it raises for a damaged header ranges
from TokenError to OverflowError. Here a header is checked against the bytes that are there before any is read.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from quantrim.errors import DataError, first_line
from quantrim.files import open_regular

#: Largest sample, and largest array whose samples don't lie one behind the other (Fortran order).
MAX_SAMPLE_BYTES, MAX_SCATTERED_BYTES = 2**30, 2**31
#: More samples that hold nothing are an endless loop.
_EMPTY_SAMPLES = 1_000_000
#: What zipfile, zlib and numpy's parser of headers raise for damaged, encrypted or odd files.
_DAMAGED = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, SyntaxError, RecursionError,
    RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a file; iterating reads one sample after the other.

    Attributes:
        name: of the file, and of the array in it, for messages.
        shape: sizes; the first axis counts samples.
        dtype: of a number.
        fortran: whether the first axis runs fastest.
        opened: opens the file at the first value.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    opened: Callable[[], IO[bytes]]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Samples in order, each an array of its own.

        Raises:
            DataError: one is too large, or the file ends early.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        if size > MAX_SAMPLE_BYTES:
            raise DataError(f"{self.name}: a sample takes {size / 1e6:.0f} MB; at most 1074 MB are read.")
        if self.fortran and self.ndim > 1:
            yield from self._scattered(size * len(self))
            return
        with self.opened() as file:
            for index in range(len(self)):
                yield self._values(file, size, f"sample {index}").reshape(self.shape[1:])

    def _scattered(self, size: int) -> Iterator[np.ndarray]:
        if size > MAX_SCATTERED_BYTES:
            raise DataError(
                f"{self.name}: {size / 1e6:.0f} MB in Fortran order, which can't be read sample by sample. "
                "Save it with np.ascontiguousarray(...)."
            )
        with self.opened() as file:
            yield from self._values(file, size, "array").reshape(self.shape, order="F")

    def _values(self, file: IO[bytes], size: int, what: str) -> np.ndarray:
        try:
            data = file.read(size)
        except _DAMAGED as error:
            raise DataError(f"{self.name}: {what} can't be read ({first_line(error)}).") from error
        if len(data) != size:
            raise DataError(f"{self.name}: {what} is cut off.")
        return np.frombuffer(data, self.dtype)


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """Arrays of an .npz file by name; the only one of an .npy file under "".

    Raises:
        DataError: no regular file, damaged, encrypted, or it holds Python objects.
    """
    try:
        if path.suffix == ".npz":
            return _members(path)
        with open_regular(path, 2**62) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return {"": _described(file, size, str(path), lambda: open_regular(path, 2**62))}
    except _DAMAGED as error:
        raise DataError(f"{path}: can't be read as {path.suffix[1:]} ({first_line(error)}).") from error


def _members(path: Path) -> dict[str, StoredArray]:
    found = {}
    with open_regular(path, 2**62) as file, zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as member:
                found[name] = _described(member, entry.file_size, f"{path}, {name}", _opener(path, entry))
    return found


def _opener(path: Path, entry: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        return zipfile.ZipFile(path).open(entry)

    return opened


def _described(file: IO[bytes], size: int, name: str, opened: Callable[[], IO[bytes]]) -> StoredArray:
    """Shape and type from the header, held against the bytes that follow it."""
    shape, fortran, dtype = _header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would run code")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    if 0 in shape[1:] and shape[0] > _EMPTY_SAMPLES:
        raise ValueError(f"its shape is {shape}: samples without values")
    start = file.tell()
    if math.prod(shape) * dtype.itemsize > size - start:
        raise ValueError(f"its shape is {shape}, but only {size - start} bytes follow")

    def data() -> IO[bytes]:
        stream = opened()
        stream.read(start)
        return stream

    return StoredArray(name, shape, dtype, fortran, data)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Later versions than 1.0 are for records of many fields; their headers may ask for gigabytes."""
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise ValueError(f"its format has version {version}; plain numbers have (1, 0)")
    return np.lib.format.read_array_header_1_0(file)
