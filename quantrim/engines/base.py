"""What every engine offers: run a file, and say how it ran each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from quantrim.errors import EngineError

EngineName = Literal["openvino", "onnxruntime", "tensorrt"]
Precision = Literal["f32", "bf16"]


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


@dataclass(frozen=True, slots=True)
class LayerRun:
    """How an engine executed one of its layers.

    Attributes:
        nodes: names of the file's nodes (or tensors) that the layer stands for; several when fused.
        kind: the engine's name of the layer.
        precision: "int8", "f32", "bf16", "f16" or the engine's own word.
        kernel: the implementation chosen.
        time_ms: time of this layer in the profiled run; None where the engine doesn't say.
    """

    nodes: tuple[str, ...]
    kind: str
    precision: str
    kernel: str
    time_ms: float | None


class Session(Protocol):
    """A model loaded on an engine, ready to run."""

    engine: EngineName
    precision: Precision
    threads: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises EngineError when the engine refuses the input."""
        ...

    def layers(self, feed: Mapping[str, np.ndarray]) -> tuple[LayerRun, ...]:
        """How each layer is executed; runs the model once with profiling where the engine needs that."""
        ...


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
            f"input {port.name!r} has dynamic shape {spell(port.shape)}. Pass --input-shape, e.g. 1,3,224,224."
        )
    return tuple(size for size in filled if size is not None)


def spell(shape: tuple[int | None, ...]) -> str:
    """``1x3x?x?``; "a single value" for no axes."""
    return "a single value" if not shape else "x".join("?" if size is None else str(size) for size in shape)


def random_inputs(
    session: Session, batch_size: int = 1, shape: tuple[int, ...] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Standard-normal arrays for every input; ``shape`` is for the first one."""
    generator = np.random.default_rng(seed)
    return {
        port.name: generator.standard_normal(
            fill_shape(port, batch_size, shape if index == 0 else None)
        ).astype(port.dtype)
        for index, port in enumerate(session.inputs)
    }
