"""CIFAR-10 (Krizhevsky, 2009) from its binary or its Python version."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantrim.errors import DataError
from quantrim.vision.data.datasets import Arrays

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
#: All that a pickled NumPy array is made of; anything else in the file is refused before it is called.
_ARRAY_PARTS = frozenset(
    (f"numpy{core}", name)
    for core, name in (
        (".core.multiarray", "_reconstruct"),
        ("._core.multiarray", "_reconstruct"),
        (".core.numeric", "_frombuffer"),
        ("._core.numeric", "_frombuffer"),
        ("", "ndarray"),
        ("", "dtype"),
    )
) | {("_codecs", "encode")}


def cifar10(root: str | Path, split: Literal["train", "val"]) -> Arrays:
    """CIFAR-10 from ``data_batch_1.bin`` ... ``test_batch.bin``, or the same names without suffix (Python).

    Args:
        root: folder of the files, or of ``cifar-10-batches-bin`` or ``cifar-10-batches-py``.
        split: "train" (50,000) or "val" (10,000).

    Raises:
        DataError: a file is missing, damaged, or a pickle of anything but arrays, numbers and texts.
    """
    stems = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    parts = [_batch(_find(Path(root), stem)) for stem in stems]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Arrays(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _find(root: Path, stem: str) -> Path:
    folders = (root, root / "cifar-10-batches-bin", root / "cifar-10-batches-py")
    for path in (folder / name for folder in folders for name in (f"{stem}.bin", stem)):
        if path.is_file():
            return path
    raise DataError(
        f"{root}: neither {stem}.bin nor {stem} is here. Unpack cifar-10-binary.tar.gz or "
        "cifar-10-python.tar.gz into it."
    )


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, 3072), channels first, and labels uint8 (N,)."""
    return _binary(path) if path.suffix == ".bin" else _python(path)


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % (_PIXELS + 1):
        raise DataError(f"{path}: {values.size} bytes are no whole number of CIFAR-10 records; truncated?")
    records = values.reshape(-1, _PIXELS + 1)
    return records[:, 1:], records[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that can build arrays, numbers, texts and containers, and calls nothing else.

    A plain ``pickle.load`` runs whatever a file names.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that make an array."""
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return super().find_class(module, name)


def _python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        pixels = np.asarray(content[b"data"], np.uint8)
        labels = np.asarray(content[b"labels"], np.uint8)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, OverflowError,
            AttributeError, ImportError, IndexError, OSError) as error:  # fmt: skip
        raise DataError(f"{path}: no CIFAR-10 batch in Python's form ({error}). Unpack it again.") from error
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or labels.shape != (len(pixels),):
        raise DataError(
            f"{path}: data is {pixels.shape}, labels {labels.shape}; expected (N, {_PIXELS}) and (N,)."
        )
    return pixels, labels
