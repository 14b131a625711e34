"""Read an ONNX file, of whatever age and make, into one plain form.

What files differ in, and what every later stage may rely on:

1. weights listed among the inputs, as files of IR version 3 must (old exports, the old ONNX zoo), are
   constants only; the IR version is 8 or newer, which allows that;
2. an axis of negative size (Paddle's and some converters' spelling) is an open axis;
3. opset below 13 is converted to 17 (per-channel DequantizeLinear starts at 13);
4. nodes stand in topological order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from quantrim.errors import ModelError, first_line
from quantrim.graph.faults import telling
from quantrim.graph.session import parse_onnx

_OLDEST_OPSET = 13
_UPGRADE_OPSET = 17
_OLDEST_IR = 8


def read_onnx(path: str | Path) -> ir.Model:
    """Read an ONNX file, external data included.

    Args:
        path: the .onnx file.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, or its external data can't be found.
    """
    path = Path(path)
    proto = parse_onnx(path)
    open_negative_axes(proto)
    with telling("be read", lambda: proto, f"{path}: "):
        model = ir.serde.deserialize_model(_upgrade(proto, path))
        model.ir_version = max(model.ir_version or 0, _OLDEST_IR)
        common_passes.RemoveInitializersFromInputsPass()(model)
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError(f"{path}: its nodes read each other's results in a circle.") from error
    return model


def open_negative_axes(proto: onnx.ModelProto) -> None:
    """Turn sizes below zero into open axes, in place."""
    for info in _infos(proto.graph):
        for dimension in info.type.tensor_type.shape.dim:
            if dimension.HasField("dim_value") and dimension.dim_value < 0:
                dimension.ClearField("dim_value")


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    for listed in (graph.input, graph.output, graph.value_info):
        yield from (info for info in listed if info.type.HasField("tensor_type"))
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _infos(body)


def _upgrade(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset >= _OLDEST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, _UPGRADE_OPSET)
    except Exception as error:  # the C++ converter raises bare RuntimeErrors of many kinds
        raise ModelError(
            f"{path}: opset {opset} can't be converted to {_UPGRADE_OPSET} ({first_line(error)}). "
            f"Export it again with opset {_OLDEST_OPSET} or newer."
        ) from error
