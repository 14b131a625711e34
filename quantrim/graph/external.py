"""Weights that lie in files beside the model: where they may lie, and that all of their bytes are there."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import onnx

from quantrim.errors import ModelError
from quantrim.graph.soundness import data_bytes, graphs_of, tensors_of

#: Offsets and lengths have fewer digits than this; longer ones are no numbers of bytes.
_DIGITS = 19


def require_external_data(proto: onnx.ModelProto, folder: Path) -> None:
    """See that every external weight lies whole in a file of the model's own folder.

    Raises:
        ModelError: names the weight and its file.
    """
    for graph, _ in graphs_of(proto):
        for tensor in tensors_of(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _require_whole(tensor, folder)


def external_files(path: Path) -> list[Path]:
    """Files beside an .onnx file that hold its weights; none for most models.

    Raises:
        ModelError: one would lie outside of the model's folder.
    """
    tensors = (
        tensor
        for graph, _ in graphs_of(onnx.load(path, load_external_data=False))
        for tensor in tensors_of(graph)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    )
    located = {
        (tensor.name, entry.value)
        for tensor in tensors
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted({_file_of(name, location, path.parent) for name, location in located})


def _require_whole(tensor: onnx.TensorProto, folder: Path) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    file = _file_of(tensor.name, where.get("location", ""), folder)
    offset, needed = (_number(tensor.name, key, where.get(key, "")) for key in ("offset", "length"))
    expected = data_bytes(tensor)
    if needed is None and file.is_file():  # to the end of the file
        needed = max(0, file.stat().st_size - (offset or 0))
    if needed is not None and expected is not None and needed != expected:
        raise ModelError(
            f"damaged model: weight {tensor.name!r} of shape {list(tensor.dims)} takes {expected} bytes, but "
            f"has {needed} in {file.name}."
        )
    if not file.is_file():
        raise ModelError(f"its external data {file.name} are missing. Put the file beside it.")
    end = (offset or 0) + (needed if needed is not None else expected or 0)
    if file.stat().st_size < end:
        raise ModelError(
            f"its external data {file.name} have {file.stat().st_size} bytes, tensor {tensor.name!r} ends at "
            f"{end}: a truncated copy. Copy the file again."
        )


def _file_of(name: str, location: str, folder: Path) -> Path:
    """Path of an external file; links may not lead out of the folder either."""
    parts = PurePosixPath(location.replace("\\", "/"))
    if not isinstance(location, str) or not location or "\0" in location:
        raise ModelError(f"damaged model: weight {name!r} lies in a file without a name.")
    if parts.is_absolute() or ".." in parts.parts or ":" in location:
        raise ModelError(f"weight {name!r} lies in {location!r}, outside of the model's folder.")
    file, home = folder / parts, folder.resolve()
    if file.exists() and not file.resolve().is_relative_to(home):
        raise ModelError(f"weight {name!r} lies in {location!r}, a link out of the model's folder.")
    return file


def _number(name: str, key: str, text: str) -> int | None:
    """A number of bytes; None where the file gives none."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < _DIGITS):
        raise ModelError(f"damaged model: weight {name!r} has {key} {text[:40]!r}, no number of bytes.")
    return int(text)
