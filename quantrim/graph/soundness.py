"""What must hold of an ONNX file before anything is built from it: others' files may be damaged, or hostile.

Protobuf's parser takes any message of the right form. Checked here, in order, each with one line that names the
node, weight or input:

1. names are UTF-8 text; nodes, nested graphs and expanded functions are not absurdly many; no function calls
   itself;
2. inputs and outputs have types that ONNX knows;
3. a weight's type, shape and bytes fit each other;
4. every tensor that a node reads is made once, by a node that does not depend on it;
5. attributes have the type that the operator's schema asks for, and those of windows are of sane size;
6. loops end, and no tensor whose shape the file fixes is larger than memory (:mod:`quantrim.graph.extents`).

Files that run in practice but not by the letter (unknown domains, unsorted nodes, missing value infos) pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from quantrim.errors import ModelError
from quantrim.graph.extents import require_extents

#: Nodes of all graphs, functions expanded; the largest vision models have some ten thousand.
MAX_NODES = 1_000_000
#: Graphs within graphs (protobuf itself stops at about 30), and functions that call functions.
MAX_DEPTH, MAX_CALLS = 16, 64
#: Largest kernel, stride, dilation or padding.
MAX_WINDOW = 1_000_000
#: No opset will have this number for centuries.
_LATEST_OPSET = 1000
_AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_ELEMENTS = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
#: Bits of a value in ``raw_data``; strings have none.
_BITS = {
    **dict.fromkeys((onnx.TensorProto.UINT4, onnx.TensorProto.INT4, onnx.TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((getattr(onnx.TensorProto, n, -1) for n in ("INT2", "UINT2")), 2),
}  # fmt: skip
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def damaged(where: str, words: str) -> ModelError:
    """The one sentence of all faults."""
    return ModelError(f"damaged model: {where}{' ' if where else ''}{words}")


def require_sound(proto: onnx.ModelProto) -> None:
    """Check a model whose external data were not read yet.

    Raises:
        ModelError: "damaged model: ..." with the first fault.
    """
    for graph, depth in graphs_of(proto):
        if depth > MAX_DEPTH:
            raise damaged("", f"graphs nested deeper than {MAX_DEPTH}.")
        _require_names(graph.node)
        _require_value_names(graph)
    for function in proto.functions:
        _require_names(function.node)
    _require_functions(proto)
    _require_ports(proto.graph)
    for graph, _ in graphs_of(proto):
        _require_tensors(graph)
    _require_wiring(proto.graph, frozenset())
    _require_attributes(proto)
    require_extents(proto)


def graphs_of(proto: onnx.ModelProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    """All graphs of a model with their depth: its own, and those in the attributes of nodes."""
    waiting = [(proto.graph, 0)] + [
        (inner, 1) for function in proto.functions for inner in _inner(function.node)
    ]
    while waiting:
        graph, depth = waiting.pop()
        yield graph, depth
        waiting += [(inner, depth + 1) for inner in _inner(graph.node)]


def _inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def told(node: onnx.NodeProto) -> str:
    """How a message speaks of a node."""
    return f"node {node.name or (node.output[0] if node.output else '')!r} ({node.op_type})"


def _require_names(nodes: Iterable[onnx.NodeProto]) -> None:
    """Python sees a string that is no UTF-8 as bytes."""
    for node in nodes:
        words = [node.name, node.op_type, node.domain, *node.input, *node.output]
        if not all(isinstance(w, str) for w in [*words, *(a.name for a in node.attribute)]):
            raise damaged(told(node), "has a name that is no UTF-8 text.")


def _require_value_names(graph: onnx.GraphProto) -> None:
    named = [*graph.input, *graph.output, *graph.initializer, *graph.value_info]
    for value in named:
        if not isinstance(value.name, str):
            raise damaged(f"tensor {value.name!r}", "has a name that is no UTF-8 text.")


def _require_functions(proto: onnx.ModelProto) -> None:
    """Count the nodes behind every call; refuse circles and more than anybody can mean."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    counts: dict[tuple[str, str], int] = {}
    under_way: list[tuple[str, str]] = []

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += 1 + sum(size(inner.node) for inner in _inner([node]))
            key = (node.domain, node.op_type)
            if key in bodies:
                total += calls(key)
            if total > MAX_NODES:
                raise damaged("", f"more than {MAX_NODES} nodes once its functions are expanded.")
        return total

    def calls(key: tuple[str, str]) -> int:
        if key in under_way or len(under_way) > MAX_CALLS:
            raise damaged(f"function {key[1]!r}", "calls itself, or calls are nested too deep.")
        if key not in counts:
            under_way.append(key)
            counts[key] = size(bodies[key].node)
            under_way.pop()
        return counts[key]

    for key in bodies:
        calls(key)
    size(proto.graph.node)


def _require_ports(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if not value.name:
                raise damaged(f"an {kind}", "has no name.")
            if value.type.HasField("tensor_type"):
                _require_type(f"{kind} {value.name!r}", value.type.tensor_type)
            elif kind == "input" and not value.type.WhichOneof("value") and value.name not in weights:
                raise damaged(f"input {value.name!r}", "has no type.")


def _require_type(what: str, tensor: onnx.TypeProto.Tensor) -> None:
    if tensor.elem_type not in _ELEMENTS:
        raise damaged(what, f"has element type {tensor.elem_type}, which ONNX doesn't know.")
    for dim in tensor.shape.dim:  # sizes below zero stand for open ones in some exporters
        if dim.HasField("dim_param") and not isinstance(dim.dim_param, str):
            raise damaged(what, "names an axis with bytes that are no UTF-8 text.")


def _require_tensors(graph: onnx.GraphProto) -> None:
    for tensor in tensors_of(graph):
        what = f"weight {tensor.name!r}"
        if tensor.data_type not in _ELEMENTS:
            raise damaged(what, f"has type {tensor.data_type}, which ONNX doesn't know.")
        if any(size < 0 for size in tensor.dims):
            raise damaged(what, f"has shape {list(tensor.dims)}.")
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            _require_data(what, tensor)


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and constants of one graph, not of those within it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def data_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that the values of a tensor take in ``raw_data``; None for strings."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    count = math.prod(tensor.dims)
    bits = _BITS.get(tensor.data_type)
    if bits is not None:
        return -(-count * bits // 8)
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _require_data(what: str, tensor: onnx.TensorProto) -> None:
    shape, expected = list(tensor.dims), data_bytes(tensor)
    if tensor.HasField("raw_data"):
        if expected is None or len(tensor.raw_data) != expected:
            raise damaged(what, f"of shape {shape} takes {expected} bytes, but has {len(tensor.raw_data)}.")
        return
    values = max(len(getattr(tensor, field)) for field in _FIELDS)
    count = math.prod(shape) * (2 if tensor.data_type in _COMPLEX else 1)
    packed = -(-count * _BITS[tensor.data_type] // 8) if tensor.data_type in _BITS else count
    if values not in (count, packed):
        raise damaged(what, f"has shape {shape} and {values} values.")


_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def _require_wiring(graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Each tensor is made once, each that is read is made, and no node waits for itself."""
    weights = Counter(tensor.name for tensor in graph.initializer)
    if weights and (most := weights.most_common(1)[0])[1] > 1:
        raise damaged(f"weight {most[0]!r}", "is there twice.")
    made = {value.name for value in graph.input} | weights.keys()
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    maker: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in made or name in maker:
                raise damaged(
                    told(node), f"makes {name!r}, which another node or the model's inputs make, too."
                )
            maker[name] = index
    known = made | maker.keys() | outer
    for node in graph.node:
        missing = next((name for name in node.input if name and name not in known), None)
        if missing is not None:
            raise damaged(told(node), f"reads {missing!r}, which nothing makes.")
    lost = next((value.name for value in graph.output if value.name not in known), None)
    if lost is not None:
        raise damaged(f"output {lost!r}", "is made by nothing.")
    _require_order(graph, maker)
    for inner in _inner(graph.node):
        _require_wiring(inner, frozenset(known))


def _require_order(graph: onnx.GraphProto, maker: dict[str, int]) -> None:
    reads = [{maker[name] for name in _read(node) if name in maker} for node in graph.node]
    readers: list[list[int]] = [[] for _ in reads]
    for index, sources in enumerate(reads):
        for source in sources:
            readers[source].append(index)
    open_reads = [len(sources) for sources in reads]
    ready = [index for index, count in enumerate(open_reads) if count == 0]
    done = 0
    while ready:
        done += 1
        for reader in readers[ready.pop()]:
            open_reads[reader] -= 1
            if open_reads[reader] == 0:
                ready.append(reader)
    if done < len(reads):
        stuck = next(index for index, count in enumerate(open_reads) if count)
        raise damaged(told(graph.node[stuck]), "waits for its own output.")


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, and those that graphs within it read."""
    yield from node.input
    for inner in _inner([node]):
        for part in inner.node:
            yield from _read(part)
        yield from (value.name for value in inner.output)


@dataclass(frozen=True, slots=True)
class _Window:
    """Legal values of an attribute of sliding windows."""

    low: int
    high: int


_WINDOWS = {
    "dilations": _Window(1, MAX_WINDOW),
    "group": _Window(1, 2**31),
    "kernel_shape": _Window(1, MAX_WINDOW),
    "output_padding": _Window(0, MAX_WINDOW),
    "pads": _Window(-MAX_WINDOW, MAX_WINDOW),
    "strides": _Window(1, MAX_WINDOW),
}
_SLIDING = frozenset(
    {"AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "LpPool", "MaxPool", "QLinearConv"}
)


def _require_attributes(proto: onnx.ModelProto) -> None:
    found = (entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    opset = next(found, onnx.defs.onnx_opset_version())
    if not 1 <= opset <= _LATEST_OPSET:
        raise damaged("", f"opset {opset} does not exist.")
    for graph, _ in graphs_of(proto):
        for node in graph.node:
            if node.domain in ("", "ai.onnx"):
                _require_types(node, opset)
            if node.op_type in _SLIDING:
                _require_windows(node)


def _require_types(node: onnx.NodeProto, opset: int) -> None:
    try:
        legal = onnx.defs.get_schema(node.op_type, opset, "").attributes
    except onnx.defs.SchemaError:  # an operator of a newer opset, or none; engines say which
        return
    for attribute in node.attribute:
        wanted = legal.get(attribute.name)
        if wanted is not None and not attribute.ref_attr_name and int(wanted.type.value) != attribute.type:
            raise damaged(told(node), f"has {attribute.name!r} of another type than {wanted.type.name}.")


def _require_windows(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        window = _WINDOWS.get(attribute.name)
        values = [attribute.i] if attribute.name == "group" else list(attribute.ints)
        if window is not None and not all(window.low <= value <= window.high for value in values):
            raise damaged(told(node), f"has {attribute.name} {values}.")
        if attribute.name == "auto_pad" and attribute.s.decode("utf-8", "replace") not in _AUTO_PAD:
            raise damaged(told(node), f"has auto_pad {attribute.s!r}; legal: {', '.join(_AUTO_PAD)}.")
