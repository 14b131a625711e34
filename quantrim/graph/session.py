"""Run a model that is still in memory: ONNX Runtime as the reference that every stage may ask."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError

from quantrim.errors import ModelError, first_line, refusal
from quantrim.files import absence, atomic_path
from quantrim.graph.external import require_external_data
from quantrim.graph.soundness import require_sound
from quantrim.scratch import scratch_folder

#: Protobuf refuses messages of 2 GiB; models near it travel through files with external data.
_PROTO_LIMIT_BYTES = 1_800_000_000


def parse_onnx(path: Path, *, external: bool = True) -> onnx.ModelProto:
    """Protobuf message of an .onnx file.

    Args:
        path: the file.
        external: load external data too; else only see that they are there.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, or its external data are.
    """
    if not path.is_file():
        raise ModelError(f"{path}: {absence(path)}")
    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"{path}: not an ONNX file, or a truncated one ({path.stat().st_size} bytes). Export it again."
        ) from error
    if not proto.graph.output:
        raise ModelError(f"{path}: not an ONNX file, or a truncated one: it has no outputs.")
    try:
        require_sound(proto)
        require_external_data(proto, path.parent)
        if external:
            onnx.load_external_data_for_model(proto, str(path.parent))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: its external data can't be read: {first_line(error)}") from error
    return proto


def model_bytes(model: ir.Model) -> int:
    """Bytes held by the initializers of a model."""
    return sum(int(value.const_value.nbytes) for value in _initializers(model))


def _initializers(model: ir.Model) -> Iterable[Any]:
    return (value for value in model.graph.initializers.values() if value.const_value is not None)


class RunError(ModelError):
    """A model that loads can't compute on what it is given."""


class ReferenceSession(ort.InferenceSession):
    """A session whose refusals are ours."""

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> list[Any]:
        """Outputs in the order of the names.

        Raises:
            RunError: a node can't compute on what it gets; ONNX Runtime's first line names it.
            MemoryError: a node asks for more than there is.
        """
        try:
            return super().run(output_names, input_feed, run_options)
        except Exception as error:  # ONNX Runtime raises many types of its own
            if "Failed to allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError(first_line(error)) from error
            raise RunError(f"ONNX Runtime can't run the model: {first_line(error)}") from error


def reference_session(model: ir.Model, *, threads: int | None = None) -> ReferenceSession:
    """ONNX Runtime CPU session of an in-memory model.

    Raises:
        ModelError: ONNX Runtime refuses the model; its own first line is quoted.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    try:
        if model_bytes(model) < _PROTO_LIMIT_BYTES:
            data = ir.serde.serialize_model(model).SerializeToString()
            return ReferenceSession(data, options, providers=providers)
        with scratch_folder() as folder:
            path = folder / "model.onnx"
            ir.save(model, path, external_data="model.onnx.data")
            return ReferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise ModelError(f"ONNX Runtime can't load the model: {refusal(error)}") from error


def with_outputs(model: ir.Model, tensors: Iterable[str]) -> ir.Model:
    """Copy of a model that also returns the named inner tensors (weights are shared, not copied)."""
    copy = ir.Model(model.graph.clone(), ir_version=model.ir_version, functions=list(model.functions.values()))
    values = {value.name: value for node in copy.graph for value in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    for name in tensors:
        if name not in present and name in values:
            copy.graph.outputs.append(values[name])
    return copy


_EXTERNAL_DATA_BYTES = 1_800_000_000
#: What onnx.checker has against outputs of unknown rank, which converters write and engines take.
_RANKLESS = "Field 'shape' of 'type' is required but missing"


def save_model(model: ir.Model, path: str | Path) -> None:
    """Check a model and write it atomically; above 1.8 GB the constants go to ``NAME.data`` beside it.

    Raises:
        ModelError: onnx.checker refuses the model.
        QuantrimError: the file can't be written.
    """
    path = Path(path)
    if model_bytes(model) >= _EXTERNAL_DATA_BYTES:
        with (
            atomic_path(path.with_name(path.name + ".data")) as data,
            atomic_path(path) as temporary,
        ):
            ir.save(model, temporary, external_data=data.name)
            text = temporary.read_bytes().replace(data.name.encode(), (path.name + ".data").encode())
            temporary.write_bytes(text)
        return
    proto = ir.serde.serialize_model(model)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        if _RANKLESS not in str(error):
            raise ModelError(
                f"{path.name}: the quantized graph is not valid ONNX: {first_line(error)}"
            ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
