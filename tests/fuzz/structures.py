"""More mutators of ONNX files: messages cut inside, names that stand twice, sparse weights, odd numbers."""

from __future__ import annotations

import math
import random

import onnx
from onnx import TensorProto, TypeProto, helper

NAMES = (
    "\u202eevil",
    "e\u0301",
    "\u00e9",
    "\ufeffx",
    "a b\tc\n",
    "x" * 1_000_000,
    "\U0001f98a" * 999,
    "%n",
    "'; --",
    "\0x",
)
DIMS = (-1, -2, 0, 2**31, 2**62, 2**63 - 1, -(2**63))


def _delimited(field: int, data: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


def nested_cut(data: bytes, rnd: random.Random) -> bytes:
    """A node, weight or port behind the others, cut or damaged within; the messages around it are whole."""
    graph = onnx.load_from_string(data).graph
    field, one = rnd.choice([(1, graph.node), (5, graph.initializer), (11, graph.input), (12, graph.output)])
    inner = bytearray(rnd.choice(list(one)).SerializeToString())
    kind = rnd.randrange(3)
    if kind == 0:
        del inner[rnd.randrange(len(inner)) :]
    elif kind == 1:
        inner[rnd.randrange(len(inner))] = rnd.randrange(256)
    else:
        inner = bytearray(b"\x0b" * rnd.choice([3, 2000]))  # groups that are begun and never ended
    return data + _delimited(7, _delimited(field, bytes(inner)))


def duplicates(model: onnx.ModelProto, rnd: random.Random) -> None:
    """A name that stands twice, for things that are not the same."""
    graph, kind = model.graph, rnd.randrange(7)
    weight = rnd.choice(list(graph.initializer))
    if kind == 0:
        other = graph.initializer.add(name=weight.name, data_type=TensorProto.FLOAT, dims=[2])
        other.float_data.extend([1, 2])
    elif kind == 1:
        graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.INT64, [1]))
    elif kind == 2:
        graph.output.append(graph.output[0])
    elif kind == 3:
        graph.node.append(rnd.choice(list(graph.node)))
    elif kind == 4:
        for node in graph.node:
            node.name = "same"
    elif kind == 5:
        model.opset_import.append(helper.make_opsetid("", rnd.choice([1, 17, 99])))
    else:
        shape = rnd.choice([[1], [-1, 3], [2**62, 4]])
        for name in (weight.name, "c", "y", "nowhere"):
            graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape))


def sparse(model: onnx.ModelProto, rnd: random.Random) -> None:
    """A weight becomes a sparse one whose indices, dimensions or values don't fit."""
    weight = rnd.choice(list(model.graph.initializer))
    made = onnx.SparseTensorProto(dims=rnd.choice([list(weight.dims), [-1], [2**40, 2**40], [], [3]]))
    made.values.CopyFrom(weight)
    kind, count = rnd.choice([TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT]), rnd.randrange(4)
    indices = [rnd.choice([-1, 0, 0, 5, 2**62]) if kind == TensorProto.INT64 else 1 for _ in range(count)]
    made.indices.CopyFrom(helper.make_tensor("i", kind, rnd.choice([[count], [count, 1]]), indices))
    if rnd.random() < 0.5:
        made.values.name = weight.name
        model.graph.initializer.remove(weight)
        model.graph.sparse_initializer.append(made)
    else:
        node = model.graph.node.add(op_type="Constant", output=["sparse"])
        node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(
            made
        )
        model.graph.node[0].input[1] = "sparse"


def names(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Names and texts that are odd or huge; the graph stays what it was where they fit each other."""
    name, kind = rnd.choice(NAMES), rnd.randrange(5)
    node = rnd.choice(list(model.graph.node))
    if kind == 0:
        old = node.output[0]
        for one in model.graph.node:
            for place in (one.input, one.output):
                place[:] = [name if tensor == old else tensor for tensor in place]
        for port in model.graph.output:
            port.name = name if port.name == old else port.name
    elif kind == 1:
        node.name = name
    elif kind == 2:
        model.graph.doc_string = model.producer_name = name * rnd.choice([1, 9])
    elif kind == 3:
        for number in range(rnd.choice([2, 20_000])):
            model.metadata_props.add(key=name[:100], value=f"{number}{name[:50]}")
    else:
        node.op_type, node.domain = rnd.choice([(name, ""), (node.op_type, name), ("ai.onnx::Conv", "")])


def numbers(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Floats that are none, words that are no UTF-8, lists that are far too long."""
    node = rnd.choice(list(model.graph.node))
    odd = rnd.choice([math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324])
    made = rnd.choice([
        helper.make_attribute("epsilon", odd), helper.make_attribute("alpha", odd),
        helper.make_attribute("scales", [odd] * rnd.choice([1, 4, 100_000])),
        helper.make_attribute("auto_pad", b"\xff\xfe"), helper.make_attribute("mode", b"linear\0"),
        helper.make_attribute("kernel_shape", [3] * rnd.choice([1, 3, 100_000])),
        helper.make_attribute("value", helper.make_tensor("v", TensorProto.FLOAT, [1], [odd])),
        helper.make_attribute("then_branch", model.graph),
    ])  # fmt: skip
    for old in [one for one in node.attribute if one.name == made.name]:
        node.attribute.remove(old)
    node.attribute.append(made)
    for weight in model.graph.initializer:
        if weight.name in ("low", "high", "fb") and rnd.random() < 0.5:
            values = [math.nan if odd != odd else math.copysign(math.inf, odd)] * max(1, math.prod(weight.dims))
            weight.CopyFrom(helper.make_tensor(weight.name, TensorProto.FLOAT, weight.dims, values))


def types(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Ports of other kinds and dimensions, weights of other element types."""
    kind, port = rnd.randrange(4), rnd.choice([*model.graph.input, *model.graph.output])
    if kind == 0:
        tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 3, 16, 16])
        port.type.CopyFrom(rnd.choice([
            helper.make_sequence_type_proto(tensor), helper.make_optional_type_proto(tensor), TypeProto(),
            helper.make_map_type_proto(TensorProto.STRING, tensor),
            helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [1, 3]),
        ]))  # fmt: skip
    elif kind == 1:
        shape = rnd.choice([[], [rnd.choice(DIMS)] * 4, ["N"] * 40, ["x" * 100_000, 3, 16, 16], [1] * 300])
        port.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    else:
        weight = rnd.choice(list(model.graph.initializer))
        weight.data_type = rnd.choice([0, 8, 10, 14, 15, 16, 17, 20, 21, 22, 23, 24, 99, -1])
        if kind == 3:
            weight.dims[:] = [rnd.choice(DIMS)] * len(weight.dims)


EDITS = (duplicates, sparse, names, numbers, types)
