"""OpenVINO CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from quantrim.engines.base import PRECISION_KEY, EngineName, LayerRun, Precision
from quantrim.errors import EngineError
from quantrim.graph.ports import Port

_PRECISIONS = {"u8": "int8", "i8": "int8", "s8": "int8"}
#: Lines of an error that say where in OpenVINO's source it came up, or nothing.
_NOT_TELLING = (
    "Exception from", "Check '", "FrontEnd API failed", "Loading input model", "Model wasn't fully converted",
    "Summary:", "While validating", "Conversion is failed for:", "-- Conversion is failed for:",
)  # fmt: skip
_NO_WORK = frozenset({"Const", "Constant", "Input", "Parameter", "Output", "Result"})


class OpenVinoSession:
    """A model compiled for the CPU plug-in.

    Args:
        path: .onnx, .xml or .pdmodel file.
        threads: inference threads; None for all cores.
        precision: type of the layers that are not INT8 ("f32", or "bf16" as INFERENCE_PRECISION_HINT); None for
            what the file asks for.
        streams: parallel streams; 1 for latency, more for throughput.
        profiling: collect the time of each layer.

    Raises:
        EngineError: OpenVINO can't read or compile the file.
    """

    engine: EngineName = "openvino"

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        precision: Precision | None = None,
        streams: int = 1,
        profiling: bool = False,
    ) -> None:
        self.path, self.streams = Path(path), streams
        self.threads = threads or os.cpu_count() or 1
        config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "PERF_COUNT": profiling,
        }
        try:
            core = ov.Core()
            model = core.read_model(self.path)
            self.precision: Precision = precision or _asked_precision(model)
            config["INFERENCE_PRECISION_HINT"] = self.precision
            self.compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise EngineError(f"{self.path}: OpenVINO can't load it: {_reason(error)}") from error
        self.inputs = tuple(_port(port) for port in self.compiled.inputs)
        self.outputs = tuple(_port(port) for port in self.compiled.outputs)
        self._request = self.compiled.create_infer_request()

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, each a copy of its own."""
        try:
            self._request.infer(dict(feed), share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"{self.path}: OpenVINO refused the input: {_reason(error)}") from error
        return {
            port.name: self._request.get_output_tensor(index).data.copy()
            for index, port in enumerate(self.outputs)
        }

    def precisions(self) -> frozenset[str]:
        """Types in which the layers of the compiled model compute; nothing is run."""
        operations = self.compiled.get_runtime_model().get_ordered_ops()
        runs = (_layer(operation, {}) for operation in operations)
        return frozenset(run.precision for run in runs if run.kind not in _NO_WORK)

    def layers(self, feed: Mapping[str, np.ndarray], runs: int = 1) -> tuple[LayerRun, ...]:
        """Layers of the runtime model, with the mean time of the profiled runs, OpenVINO's own account."""
        profiled = OpenVinoSession(self.path, threads=self.threads, precision=self.precision, profiling=True)
        for _ in range(1 + runs):
            profiled.run(feed)
        times = {
            entry.node_name: entry.real_time.total_seconds() * 1e3
            for entry in profiled._request.get_profiling_info()
        }
        operations = profiled.compiled.get_runtime_model().get_ordered_ops()
        found = (_layer(operation, times) for operation in operations)
        return tuple(run for run in found if run.kind not in _NO_WORK)


def _asked_precision(model: ov.Model) -> Precision:
    """What a tuned file says of its layers that are not INT8; OpenVINO keeps ONNX metadata in runtime info."""
    path = ["framework", PRECISION_KEY]
    asks = model.has_rt_info(path) and model.get_rt_info(path).astype(str) == "bf16"
    return "bf16" if asks else "f32"


def _layer(operation: ov.Node, times: Mapping[str, float]) -> LayerRun:
    info = operation.get_rt_info()

    def text(key: str) -> str:
        return str(info[key].astype(str)) if key in info else ""

    name = operation.get_friendly_name()
    originals = tuple(part for part in text("originalLayersNames").split(",") if part)
    precision = text("runtimePrecision")
    return LayerRun(
        nodes=originals or (name,),
        kind=text("layerType"),
        precision=_PRECISIONS.get(precision, precision),
        kernel=text("primitiveType"),
        time_ms=times.get(name),
    )


def _port(port: Any) -> Port:
    shape = tuple(None if d.is_dynamic else d.get_length() for d in port.get_partial_shape())
    return Port(_name(port), shape, np.dtype(port.get_element_type().to_dtype()))


def _name(port: Any) -> str:
    """The file's name of a port; OpenVINO may know a tensor by several, in no order."""
    names = set(port.get_names())
    own = str(port.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return own if own in names or not names else min(names)


def _reason(error: BaseException) -> str:
    """The sentences of an OpenVINO error that speak of the model, without C++ file names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told, node = [], ""
    for line in lines:
        if line.endswith("with a message:"):  # the cause stands in the lines below
            node = line.removeprefix("-- ").removesuffix("with a message:").strip() + ": "
        elif not line.startswith(_NOT_TELLING):
            told.append(node + line.removeprefix("-- "))
            node = ""
    told.sort(key=lambda line: not line.startswith("No conversion rule"))  # the cause of all others
    if told and told[0].startswith("No conversion rule"):
        told = told[:1]
    return "; ".join(told or lines[:1] or [type(error).__name__])[:300]
