"""Engines: run a file, and say which layers ran in INT8 and how fast."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quantrim.engines.base import PRECISION_KEY, EngineName, LayerRun, Precision, Session, random_inputs
from quantrim.errors import EngineError, ModelError, did_you_mean
from quantrim.files import absence
from quantrim.graph.ports import Port
from quantrim.graph.session import parse_onnx

ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime", "tensorrt")


def open_session(
    path: str | Path,
    engine: str = "openvino",
    *,
    threads: int | None = None,
    precision: Precision | None = None,
) -> Session:
    """Load a model on an engine.

    Args:
        path: model file (.onnx; .xml on OpenVINO).
        engine: "openvino", "onnxruntime" or "tensorrt".
        threads: CPU threads; None for all cores.
        precision: type of layers that are not INT8; None for what the file asks for, else f32. Only
            OpenVINO has a choice.

    Raises:
        EngineError: the engine is unknown, not installed, or refuses the file; the file is missing or damaged.
    """
    require_engine(engine)
    _require_whole(Path(path))
    if engine == "openvino":
        from quantrim.engines.openvino import OpenVinoSession

        return OpenVinoSession(path, threads=threads, precision=precision)
    if engine == "onnxruntime":
        from quantrim.engines.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads=threads, precision=precision or "f32")
    from quantrim.engines.tensorrt import TensorRtSession

    return TensorRtSession(path, threads=threads, precision=precision or "f32")


def _require_whole(path: Path) -> None:
    """Say what is wrong with a file before an engine says it in its own words."""
    if not path.is_file():
        raise EngineError(f"{path}: {absence(path)}")
    if path.suffix == ".onnx":
        try:
            parse_onnx(path, external=False)
        except ModelError as error:
            raise EngineError(str(error)) from error


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
    "PRECISION_KEY",
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
