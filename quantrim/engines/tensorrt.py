"""TensorRT on an NVIDIA GPU, from an ONNX file with explicit Q/DQ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
import torch

from quantrim.engines.base import EngineName, LayerRun, Precision
from quantrim.errors import EngineError
from quantrim.graph.ports import Port

_PRECISIONS = {"Int8": "int8", "Float": "f32", "FP32": "f32", "Half": "f16", "FP16": "f16", "BFloat16": "bf16"}


class TensorRtSession:
    """A strongly typed engine: TensorRT runs each layer in the type that the file's Q/DQ pairs ask for.

    Args:
        path: .onnx file.
        threads: ignored; the GPU runs the model.
        precision: "f32", or "bf16" for the layers that are not INT8.
        shape: shape of the first input, for dynamic axes; the file's own with batch 1 by default.

    Raises:
        EngineError: there is no GPU, or TensorRT can't parse or build the file.
    """

    engine: EngineName = "tensorrt"

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        precision: Precision = "f32",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        if not torch.cuda.is_available():
            raise EngineError("TensorRT needs an NVIDIA GPU, and torch sees none.")
        self.path, self.threads = Path(path), 0
        self.precision: Precision = precision
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._engine = self._build(shape)
        self._context = self._engine.create_execution_context()
        self.inputs = self._ports(trt.TensorIOMode.INPUT)
        self.outputs = self._ports(trt.TensorIOMode.OUTPUT)

    def _build(self, shape: tuple[int, ...] | None) -> Any:
        builder = trt.Builder(self._logger)
        strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(strongly_typed)
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(self.path)):
            raise EngineError(f"{self.path}: TensorRT can't parse it: {parser.get_error(0).desc()}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            size = shape if shape is not None and index == 0 else tuple(max(1, d) for d in tensor.shape)
            profile.set_shape(tensor.name, size, size, size)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{self.path}: TensorRT can't build an engine from it.")
        return trt.Runtime(self._logger).deserialize_cuda_engine(plan)

    def _ports(self, mode: Any) -> tuple[Port, ...]:
        names = (self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors))
        return tuple(
            Port(name, tuple(self._context.get_tensor_shape(name)), np.dtype(trt.nptype(dtype)))
            for name in names
            if self._engine.get_tensor_mode(name) == mode
            for dtype in [self._engine.get_tensor_dtype(name)]
        )

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; the call returns when the GPU is done."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)).cuda() for name, a in feed.items()}
        for name, tensor in tensors.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"{self.path}: TensorRT refused shape {tuple(tensor.shape)} for {name!r}.")
        for port in self.outputs:
            shape = tuple(self._context.get_tensor_shape(port.name))
            tensors[port.name] = torch.empty(shape, dtype=_torch_dtype(port), device="cuda")
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"{self.path}: TensorRT failed while running.")
        stream.synchronize()
        return {port.name: tensors[port.name].cpu().numpy() for port in self.outputs}

    def layers(self, feed: Mapping[str, np.ndarray], runs: int = 1) -> tuple[LayerRun, ...]:
        """Layers as the engine inspector describes them; nothing is run."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return tuple(layer_run(layer) for layer in json.loads(text)["Layers"])


def layer_run(layer: Mapping[str, Any]) -> LayerRun:
    """One layer of the inspector's JSON; its precision is that of its first input."""
    formats = [port.get("Format/Datatype", "") for port in layer.get("Inputs", [])]
    word = next((w for w in _PRECISIONS if formats and w in formats[0]), "f32")
    metadata = str(layer.get("Metadata", ""))
    nodes = tuple(part.strip(" ]") for part in metadata.split("[ONNX Layer: ")[1:]) or (str(layer["Name"]),)
    return LayerRun(
        nodes=tuple(node.split("]")[0].strip() for node in nodes),
        kind=str(layer.get("LayerType", "")),
        precision=_PRECISIONS[word] if formats else "f32",
        kernel=str(layer.get("TacticName", "")),
        time_ms=None,
    )


def _torch_dtype(port: Port) -> torch.dtype:
    return torch.from_numpy(np.empty(0, port.dtype)).dtype
