"""Engines: run a file, and say which layers ran in INT8 and how fast."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quantrim.engines.base import EngineName, LayerRun, Port, Precision, Session, random_inputs
from quantrim.errors import EngineError, did_you_mean

ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime", "tensorrt")


def open_session(
    path: str | Path,
    engine: str = "openvino",
    *,
    threads: int | None = None,
    precision: Precision = "f32",
) -> Session:
    """Load a model on an engine.

    Args:
        path: model file (.onnx; .xml on OpenVINO).
        engine: "openvino", "onnxruntime" or "tensorrt".
        threads: CPU threads; None for all cores.
        precision: type of layers that are not INT8.

    Raises:
        EngineError: the engine is unknown, not installed, or refuses the file.
    """
    require_engine(engine)
    if not Path(path).is_file():
        raise EngineError(f"{path}: no such file.")
    if engine == "openvino":
        from quantrim.engines.openvino import OpenVinoSession

        return OpenVinoSession(path, threads=threads, precision=precision)
    if engine == "onnxruntime":
        from quantrim.engines.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads=threads, precision=precision)
    from quantrim.engines.tensorrt import TensorRtSession

    return TensorRtSession(path, threads=threads, precision=precision)


def require_engine(engine: str) -> None:
    """Raise EngineError unless the engine is known and installed."""
    if engine not in ENGINES:
        raise EngineError(f"unknown engine {engine!r}{did_you_mean(engine, ENGINES)}")
    if importlib.util.find_spec(engine) is None:
        raise EngineError(f"engine {engine!r} is not installed. Install it with: pip install {engine}")


def installed_engines() -> tuple[EngineName, ...]:
    """Engines whose Python package is installed."""
    return tuple(engine for engine in ENGINES if importlib.util.find_spec(engine) is not None)


__all__ = [
    "ENGINES",
    "EngineName",
    "LayerRun",
    "Port",
    "Precision",
    "Session",
    "installed_engines",
    "open_session",
    "random_inputs",
    "require_engine",
]
