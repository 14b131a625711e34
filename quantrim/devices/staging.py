"""What has to travel with a file: weights beside a model, its ``deploy.yaml``, the images that data name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import DecodeError

from quantrim.errors import ConfigError, DataError, ModelError
from quantrim.graph.external import external_files
from quantrim.graph.feeds import evenly, image_files

#: Data that are a file by themselves.
_ARRAYS = (".npy", ".npz")
_CONFIGS = (".yml", ".yaml")


def model_files(path: Path) -> list[Path]:
    """A model with everything that belongs to it, all in its folder: external weights and ``deploy.yaml``.

    Args:
        path: .onnx file, another file of weights, or the folder of a Paddle model.

    Raises:
        ModelError: no such file.
    """
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if not path.is_file():
        raise ModelError(f"{path}: no such file.")
    found = [path, path.with_name("deploy.yaml")]
    if path.suffix == ".onnx":
        with contextlib.suppress(DecodeError):  # the verb that reads it says so in its own words
            found += external_files(path)
    return [file for file in found if file.is_file()]


def data_files(path: Path, samples: int | None) -> list[Path]:
    """The files that data name: the data file or list itself, or images.

    Args:
        path: image folder, list file, .npy or .npz.
        samples: how many a verb will take of a folder; None for all.

    Raises:
        ConfigError: a configuration, whose data set lies on this machine.
        DataError: no such data, or a list that names files outside of its folder.
    """
    if path.suffix in _CONFIGS:
        raise ConfigError(
            f"{path}: a configuration's data set can't be sent to another machine. Give images or arrays."
        )
    if path.suffix in _ARRAYS:
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
        return [path]
    files = image_files(path)
    if path.is_dir():
        return evenly(files, samples)
    return list(dict.fromkeys([path, *files]))


def names_on_host(files: Iterable[Path], home: Path, folder: str) -> dict[str, Path]:
    """Relative names below ``folder`` for files below ``home``.

    Raises:
        DataError: a file lies elsewhere.
    """
    names = {}
    for file in files:
        try:
            names[f"{folder}/{file.relative_to(home).as_posix()}"] = file
        except ValueError as error:
            raise DataError(f"{file}: lies outside of {home}, so it can't be sent. Move it there.") from error
    return names
