"""ONNX Runtime CPU."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean

import numpy as np
import onnx
import onnxruntime as ort

from quantrim.engines.base import EngineName, LayerRun, Precision
from quantrim.errors import EngineError, first_line, refusal
from quantrim.graph.ops import OF_ONNX, having
from quantrim.graph.ports import Port
from quantrim.scratch import scratch_folder

_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(bool)": np.bool_,
}  # fmt: skip
#: Operators whose kernels compute on 8-bit integers.
_INT8_OPS = frozenset(
    {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm"}
)
#: Operators that make codes, and those that compute on codes and give floats.
_MAKE_CODES = frozenset({"QuantizeLinear"})
_MAKE_FLOATS = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat"})
#: Canonical ops whose kernels run on codes as they run on floats.
_ANY_TYPE = having("moves") | {"resize"}
#: Suffixes that ONNX Runtime's optimizers append to a node's name.
_RENAMED = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant|/MatMulAddFusion|_ActivationFusion)+$")


class OnnxRuntimeSession:
    """A model loaded on the CPU execution provider.

    Args:
        path: .onnx file.
        threads: intra-op threads; None for all cores.
        precision: only "f32".

    Raises:
        EngineError: ONNX Runtime can't load the file, or bf16 was asked for.
    """

    engine: EngineName = "onnxruntime"

    def __init__(self, path: str | Path, *, threads: int | None = None, precision: Precision = "f32") -> None:
        if precision != "f32":
            raise EngineError("ONNX Runtime CPU has no bf16 mode; use precision f32.")
        self.path = Path(path)
        self.precision: Precision = precision
        self.threads = threads or os.cpu_count() or 1
        self.session = self._open(self._options())
        self.inputs = tuple(_port(value) for value in self.session.get_inputs())
        self.outputs = tuple(_port(value) for value in self.session.get_outputs())
        self._names = [port.name for port in self.outputs]

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # what goes wrong is raised, too
        # threads that wait for the next run would take the cores from whoever's turn it is
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _open(self, options: ort.SessionOptions) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # many exception types of its own
            raise EngineError(f"{self.path}: ONNX Runtime can't load it: {refusal(error)}") from error

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        try:
            return dict(zip(self._names, self.session.run(self._names, dict(feed)), strict=True))
        except Exception as error:  # as above
            raise EngineError(f"{self.path}: ONNX Runtime refused the input: {first_line(error)}") from error

    def layers(self, feed: Mapping[str, np.ndarray], runs: int = 1) -> tuple[LayerRun, ...]:
        """Nodes of the optimised graph, with mean kernel times of the profiled runs behind the first."""
        with scratch_folder() as folder:
            options = self._options()
            options.optimized_model_filepath = str(folder / "optimized.onnx")
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
            session = self._open(options)
            for _ in range(1 + runs):
                session.run(self._names, dict(feed))
            times = _kernel_times(Path(session.end_profiling()))
            graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        return tuple(_layers(graph, times))


def _kernel_times(profile: Path) -> dict[str, float]:
    """Milliseconds by node name, the mean of all runs but the first."""
    suffix = "_kernel_time"
    times = defaultdict(list)
    for event in json.loads(profile.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            times[event["name"][: -len(suffix)]].append(event["dur"] / 1e3)
    return {name: mean(found[1:] or found) for name, found in times.items()}


def _layers(graph: onnx.GraphProto, times: Mapping[str, float]) -> Iterator[LayerRun]:
    """The optimised graph's nodes; one that only moves codes runs on integers as well."""
    codes: set[str] = set()  # tensors of 8-bit integers
    for node in graph.node:
        moves = OF_ONNX.get(node.op_type.removeprefix("Nhwc")) in _ANY_TYPE and node.input[0] in codes
        computes = node.op_type.startswith("QLinear") or node.op_type in _INT8_OPS
        if moves or node.op_type in _MAKE_CODES or (computes and node.op_type not in _MAKE_FLOATS):
            codes.update(node.output)
        yield _layer(node, times, int8=moves or computes)


def _layer(node: onnx.NodeProto, times: Mapping[str, float], *, int8: bool) -> LayerRun:
    names = (_RENAMED.sub("", node.name), *node.output)
    return LayerRun(
        nodes=tuple(dict.fromkeys(names)),
        kind=node.op_type,
        precision="int8" if int8 else "f32",
        kernel=f"{node.domain or 'onnx'}.{node.op_type}",
        time_ms=times.get(node.name),
    )


def _port(value: ort.NodeArg) -> Port:
    shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape)
    return Port(value.name, shape, np.dtype(_DTYPES.get(value.type, np.float32)))
