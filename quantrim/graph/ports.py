"""Inputs and outputs of a model: their names, shapes and types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from quantrim.errors import EngineError, ModelError

#: Inputs of one run by name; the first axis counts samples.
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a model.

    Attributes:
        name: its name in the file.
        shape: sizes, None where an axis is dynamic.
        dtype: numpy dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


def counting_samples(ports: Sequence[Port]) -> frozenset[str]:
    """Names of the inputs whose first axis counts samples.

    Those where it is open; in a model of fixed sizes, those of the size that the input of most axes has there.
    Any other input, a scalar or a table that the batch shares, is fed as it is given.
    """
    opened = frozenset(port.name for port in ports if port.shape and port.shape[0] is None)
    if opened:
        return opened
    main = max(ports, key=lambda port: len(port.shape), default=None)
    if main is None or not main.shape:
        return frozenset()
    return frozenset(port.name for port in ports if port.shape and port.shape[0] == main.shape[0])


def samples_in(feed: Feed) -> int:
    """Samples of a batch: the length of the input of most axes."""
    main = max(feed.values(), key=np.ndim)
    return len(main) if np.ndim(main) else 1


def fill_shape(port: Port, batch_size: int, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Concrete shape of an input: ``shape`` if given, else the port's own with the batch filled in.

    Raises:
        EngineError: another axis is dynamic and no shape was given, or the shape contradicts the port.
    """
    if shape is not None:
        matches = len(shape) == len(port.shape) and all(
            known in (None, given) for known, given in zip(port.shape, shape, strict=True)
        )
        if not matches:
            raise EngineError(f"input {port.name!r} has shape {spell(port.shape)}, not {spell(shape)}.")
        return shape
    filled = tuple(batch_size if i == 0 and size is None else size for i, size in enumerate(port.shape))
    if any(size is None for size in filled):
        raise EngineError(
            f"input {port.name!r} has dynamic shape {spell(port.shape)}. Give input_shape, e.g. 1,3,224,224.",
            field="input_shape",
        )
    return tuple(size for size in filled if size is not None)


def spell(shape: tuple[int | None, ...]) -> str:
    """``1x3x?x?``; "a single value" for no axes."""
    return "a single value" if not shape else "x".join("?" if size is None else str(size) for size in shape)


def input_ports(model: ir.Model) -> list[Port]:
    """Inputs of a model that are not constants."""
    return [
        Port(
            str(value.name),
            tuple(d if isinstance(d, int) else None for d in (value.shape or ())),
            numpy_dtype(value),
        )
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    ]


def numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    """numpy dtype of a graph input.

    Raises:
        ModelError: the input has no tensor type.
    """
    if value.dtype is None:
        raise ModelError(f"input {value.name!r} has no element type; re-export the model.")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(value.dtype)))
