"""Run a model that is still in memory: ONNX Runtime as the reference that every stage may ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from quantrim.errors import ModelError

#: Protobuf refuses messages of 2 GiB; models near it travel through files with external data.
_PROTO_LIMIT_BYTES = 1_800_000_000

Feed = Mapping[str, np.ndarray]


def model_bytes(model: ir.Model) -> int:
    """Bytes held by the initializers of a model."""
    return sum(int(value.const_value.nbytes) for value in _initializers(model))


def _initializers(model: ir.Model) -> Iterable[Any]:
    return (value for value in model.graph.initializers.values() if value.const_value is not None)


def reference_session(model: ir.Model, *, threads: int | None = None) -> ort.InferenceSession:
    """ONNX Runtime CPU session of an in-memory model.

    Raises:
        ModelError: ONNX Runtime refuses the model; its own first line is quoted.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    try:
        if model_bytes(model) < _PROTO_LIMIT_BYTES:
            data = ir.serde.serialize_model(model).SerializeToString()
            return ort.InferenceSession(data, options, providers=providers)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model, path, external_data="model.onnx.data")
            return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise ModelError(f"ONNX Runtime can't load the model: {first_line(error)}") from error


def with_outputs(model: ir.Model, tensors: Iterable[str]) -> ir.Model:
    """Copy of a model that also returns the named inner tensors (weights are shared, not copied)."""
    copy = ir.Model(model.graph.clone(), ir_version=model.ir_version, functions=list(model.functions.values()))
    values = {value.name: value for node in copy.graph for value in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    for name in tensors:
        if name not in present and name in values:
            copy.graph.outputs.append(values[name])
    return copy


def first_line(error: BaseException) -> str:
    """First line of an exception's text, without ONNX Runtime's error-code prefix."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0]
    marker = " : "
    if text.startswith("[ONNXRuntimeError]") and text.count(marker) >= 3:
        text = text.split(marker, 3)[3]
    return text.strip()


def numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    """numpy dtype of a graph input.

    Raises:
        ModelError: the input has no tensor type.
    """
    if value.dtype is None:
        raise ModelError(f"input {value.name!r} has no element type; re-export the model.")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(value.dtype)))
