"""Sizes that a file itself fixes: endless loops and tensors that no memory holds, told before they run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from quantrim.errors import ModelError

#: Largest tensor of one run, bytes; DeepLabV3+ at 1024x2048 makes one of 0.6 GB.
MAX_TENSOR_BYTES = 16 * 2**30
#: Largest tensor that is made of constants alone: it would be made twice before the model ever runs.
MAX_CONSTANT_BYTES = 2**30
#: Most turns of a loop that has no end of its own.
MAX_TURNS = 10_000_000
#: Constants up to this many values take part in inferring shapes.
_SMALL = 1024


def require_extents(proto: onnx.ModelProto) -> None:
    """Refuse what would take all time or all memory.

    Raises:
        ModelError: names the node.
    """
    light = _without_weights(proto)
    constants = dict(_constants(light.graph))
    _require_loops(light.graph, constants)
    _require_sizes(light)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy of a model in which large weights are inputs of their type and shape."""
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = "light"
    graph.node.extend(proto.graph.node)
    graph.output.extend(proto.graph.output)
    weights = {tensor.name for tensor in proto.graph.initializer}
    graph.input.extend(value for value in proto.graph.input if value.name not in weights)
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """Small constant tensors by name."""
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value" and math.prod(attribute.t.dims) <= _SMALL:
                    yield node.output[0], numpy_helper.to_array(attribute.t)


def _require_loops(graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _require_loops(attribute.g, {**constants, **dict(_constants(attribute.g))})
        if node.op_type == "Loop":
            _require_end(node, constants)


def _require_end(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> None:
    count = constants.get(node.input[0]) if node.input and node.input[0] else None
    counted = bool(node.input and node.input[0])
    turns = int(count.reshape(-1)[0]) if count is not None and count.size else 0
    if turns > MAX_TURNS or (not counted and _goes_on(node, constants)):
        raise ModelError(
            f"damaged model: node {node.name!r} (Loop) would run {turns or 'for ever'}"
            f"{' times' if turns else ''}; at most {MAX_TURNS} turns are taken."
        )


def _goes_on(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a loop without a count keeps its condition true whatever happens."""
    body = next((a.g for a in node.attribute if a.name == "body"), None)
    first = constants.get(node.input[1]) if len(node.input) > 1 else None
    if body is None or not body.output or (first is not None and not np.all(first)):
        return False
    kept, known = body.output[0].name, {**constants, **dict(_constants(body))}
    passed = {kept} | {n.input[0] for n in body.node if n.op_type == "Identity" and kept in n.output}
    always = any(name in known and bool(np.all(known[name])) for name in passed)
    unchanged = len(body.input) > 1 and body.input[1].name in passed
    return always or unchanged


def _require_sizes(light: onnx.ModelProto) -> None:
    """Sizes that ONNX infers without propagating values, which would compute the very tensors in question."""
    inferred = light
    with contextlib.suppress(Exception):  # whatever keeps shapes from being inferred, engines will tell
        inferred = onnx.shape_inference.infer_shapes(light)
    makers = {name: node for node in inferred.graph.node for name in node.output}
    fixed = {name for name, _ in _constants(light.graph)}
    for node in inferred.graph.node:
        if all(name in fixed for name in node.input):
            fixed.update(node.output)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        limit = MAX_CONSTANT_BYTES if value.name in fixed else MAX_TENSOR_BYTES
        if (size := _bytes(value.type)) > limit and value.name in makers:
            raise _too_large(makers[value.name], size, limit)
    constants = dict(_constants(light.graph))
    for node in light.graph.node:
        if (size := 8 * _made(node, constants)) > MAX_CONSTANT_BYTES:
            raise _too_large(node, size, MAX_CONSTANT_BYTES)


def _too_large(node: onnx.NodeProto, size: int, limit: int) -> ModelError:
    name = node.name or "".join(node.output[:1])
    return ModelError(
        f"damaged model: node {name!r} ({node.op_type}) would make a tensor of {size / 1e9:.0f} GB; at most "
        f"{limit / 1e9:.0f} GB are taken."
    )


def _made(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> int:
    """Values that a node of constants makes, where shape inference does not say; 0 for all others."""
    given = [constants.get(name) for name in node.input]
    if not given or any(array is None or array.dtype.kind not in "iuf" for array in given):
        return 0
    numbers = [[float(v) for v in np.asarray(array).ravel()] for array in given]
    if not all(math.isfinite(v) for values in numbers for v in values):
        return 0
    if node.op_type == "Range" and len(given) == 3 and all(numbers) and numbers[2][0] != 0:
        return max(0, int((numbers[1][0] - numbers[0][0]) / numbers[2][0]))
    if node.op_type in ("Expand", "ConstantOfShape"):
        return int(math.prod(max(1.0, v) for v in numbers[-1]))
    if node.op_type == "Tile" and len(given) == 2:
        return int(len(numbers[0]) * math.prod(numbers[1]))
    if node.op_type == "Pad" and len(given) > 1:
        return _padded(np.asarray(given[0]).shape, numbers[1])
    return 0


def _padded(shape: tuple[int, ...], pads: list[float]) -> int:
    if len(pads) != 2 * len(shape):
        return 0
    return int(math.prod(size + pads[axis] + pads[axis + len(shape)] for axis, size in enumerate(shape)))


def _bytes(kind: onnx.TypeProto) -> int:
    """Least size of a tensor of a type: open axes count as one."""
    if not kind.HasField("tensor_type"):
        return 0
    dims = kind.tensor_type.shape.dim
    count = math.prod(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else 1 for d in dims)
    with contextlib.suppress(KeyError, ValueError):
        return count * onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).itemsize
    return 0
