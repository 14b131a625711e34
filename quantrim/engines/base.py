"""What every engine offers: run a file, and say how it ran each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from quantrim.graph.ports import Port, fill_shape

EngineName = Literal["openvino", "onnxruntime", "tensorrt"]
Precision = Literal["f32", "bf16"]
#: Key of a file's metadata: the type in which its layers that are not INT8 were fastest.
PRECISION_KEY = "quantrim.precision"


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

    def layers(self, feed: Mapping[str, np.ndarray], runs: int = 1) -> tuple[LayerRun, ...]:
        """How each layer is executed; its time is the mean of so many profiled runs behind a warm-up."""
        ...


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
