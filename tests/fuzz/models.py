"""Mutators of ONNX files: each takes the bytes of a sound model and a generator, and gives those of another.

They are seeded, so a number names a file for ever. What a mutator touches is drawn from the whole model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz import structures

Mutator = Callable[[bytes, random.Random], bytes]
NUMBERS = (-(2**63), -(2**31), -9, -1, 0, 1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**62)
LINKS = ("link.bin", "loop.bin", "fifo.bin")
WORDS = ("", "x", "y", "NOPE", "conv_0", "a" * 5000, "\0", "🦊", "../../etc/passwd", "%s%n", "relu_2")


def small_model(seed: int = 7) -> onnx.ModelProto:
    """A residual net with batch normalization, a depthwise convolution, a concat, a branch and ten classes."""
    generator = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int, scale: float = 0.3) -> str:
        weights[name] = (generator.standard_normal(shape) * scale).astype(np.float32)
        return name

    for name in ("g", "b", "m", "v"):
        weights[f"bn_{name}"] = np.abs(generator.standard_normal(8)).astype(np.float32) + 0.5
    weights["shape"] = np.array([0, -1], np.int64)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", weight("c1", 8, 3, 3, 3)], ["c"], "conv_0", pads=[1] * 4, kernel_shape=[3, 3]),
        node("BatchNormalization", ["c", "bn_g", "bn_b", "bn_m", "bn_v"], ["n"], "norm_1", epsilon=1e-5),
        node("Relu", ["n"], ["a"], "relu_2"),
        node("Conv", ["a", weight("dw", 8, 1, 3, 3)], ["d"], "conv_3", pads=[1] * 4, group=8),
        node("Clip", ["d", weight("low"), weight("high")], ["r"], "clip_4"),
        node("Add", ["a", "r"], ["s"], "add_5"),
        node("MaxPool", ["s"], ["p"], "pool_6", kernel_shape=[2, 2], strides=[2, 2]),
        node("ConvTranspose", ["p", weight("up", 8, 4, 2, 2)], ["t"], "up_7", strides=[2, 2]),
        node("Concat", ["s", "t"], ["k"], "concat_8", axis=1),
        node("GlobalAveragePool", ["k"], ["q"], "mean_9"),
        node("Reshape", ["q", "shape"], ["f"], "reshape_10"),
        node("Gemm", ["f", weight("fc", 10, 12), weight("fb", 10)], ["y"], "gemm_11", transB=1),
    ]
    weights["low"], weights["high"] = np.float32(-6), np.float32(6)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def edited(change: Callable[[onnx.ModelProto, random.Random], None]) -> Mutator:
    """A mutator that edits the parsed message."""

    def mutate(data: bytes, rnd: random.Random) -> bytes:
        model = onnx.ModelProto()
        model.ParseFromString(data)
        change(model, rnd)
        return model.SerializeToString()

    mutate.__name__ = change.__name__
    return mutate


def flipped_bits(data: bytes, rnd: random.Random) -> bytes:
    """One to eight bits, half of them in the first 2 kB, where the structure is."""
    bad = bytearray(data)
    span = len(bad) if rnd.random() < 0.5 else min(len(bad), 2000)
    for _ in range(rnd.choice([1, 1, 2, 4, 8])):
        bad[rnd.randrange(span)] ^= 1 << rnd.randrange(8)
    return bytes(bad)


def cut_off(data: bytes, rnd: random.Random) -> bytes:
    """The beginning of a file."""
    return data[: rnd.randrange(len(data))]


def spliced(data: bytes, rnd: random.Random) -> bytes:
    """A piece is copied over another place, or doubled."""
    start, length, to = rnd.randrange(len(data)), rnd.randrange(1, 200), rnd.randrange(len(data))
    piece = data[start : start + length]
    return data[:to] + piece + data[to + (length if rnd.random() < 0.5 else 0) :]


def noise(data: bytes, rnd: random.Random) -> bytes:
    """Random bytes over a stretch."""
    start = rnd.randrange(len(data))
    return data[:start] + rnd.randbytes(rnd.randrange(1, 64)) + data[start + rnd.randrange(64) :]


def bad_text(data: bytes, rnd: random.Random) -> bytes:
    """A name becomes bytes that are no UTF-8."""
    name = rnd.choice([b"conv_0", b"relu_2", b"Conv", b"Relu", b"shape", b"gemm_11", b"epsilon", b"net"])
    at = rnd.randrange(len(name))
    return data.replace(name, name[:at] + bytes([rnd.choice([0xFF, 0xC3, 0xE2, 0x80])]) + name[at + 1 :])


@edited
def attribute_value(model: onnx.ModelProto, rnd: random.Random) -> None:
    """A number of an attribute becomes extreme."""
    attribute = rnd.choice([a for n in model.graph.node for a in n.attribute])
    if attribute.ints:
        attribute.ints[rnd.randrange(len(attribute.ints))] = rnd.choice(NUMBERS)
    elif attribute.HasField("f"):
        attribute.f = rnd.choice([float("nan"), float("inf"), -1e38, 0.0])
    else:
        attribute.i = rnd.choice(NUMBERS)


@edited
def attribute_type(model: onnx.ModelProto, rnd: random.Random) -> None:
    """An attribute of another type, of another length, or one more."""
    node = rnd.choice(list(model.graph.node))
    name = rnd.choice([a.name for a in node.attribute] or ["axis", "auto_pad", "value"])
    kept = [a for a in node.attribute if a.name != name or rnd.random() < 0.2]
    value = rnd.choice([3, 1.5, "text", b"\xff", [], [1], [1] * 9, [0.5], ["a"], [2**31]])
    made = helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS if value == [] else None)
    del node.attribute[:]
    node.attribute.extend([*kept, made])


@edited
def weight_shape(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Sizes that don't fit the data, or fit it in another way."""
    tensor = rnd.choice(list(model.graph.initializer))
    dims = list(tensor.dims)
    kind = rnd.randrange(4)
    if kind == 0 and dims:
        dims[rnd.randrange(len(dims))] = rnd.choice(NUMBERS)
    elif kind == 1:
        rnd.shuffle(dims)
    elif kind == 2:
        dims = [*dims, rnd.choice([1, 0, 2])]
    else:
        dims = [int(np.prod(dims))]
    del tensor.dims[:]
    tensor.dims.extend(dims)


@edited
def weight_data(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Too few bytes, none, another type, values that are none, or another field."""
    tensor = rnd.choice(list(model.graph.initializer))
    kind = rnd.randrange(5)
    if kind == 0:
        tensor.raw_data = tensor.raw_data[: rnd.randrange(len(tensor.raw_data) + 1)]
    elif kind == 1:
        tensor.data_type = rnd.choice([0, 2, 6, 7, 8, 9, 10, 11, 14, 16, 22, 99])
    elif kind == 2:
        count = len(tensor.raw_data) // 4
        tensor.raw_data = np.full(count, rnd.choice([np.nan, np.inf, 3e38, 0.0]), np.float32).tobytes()
    elif kind == 3:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0] * rnd.choice([0, 1, 8, 80]))
    else:
        tensor.name = rnd.choice([t.name for t in model.graph.initializer])


@edited
def external_data(model: onnx.ModelProto, rnd: random.Random) -> None:
    """A weight is said to lie in a file."""
    tensor = rnd.choice(list(model.graph.initializer))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {
        "location": rnd.choice(
            [
                "w.bin",
                "../w.bin",
                "/etc/hostname",
                "",
                *LINKS,
                "a\0b",
                ".",
                "w.bin/x",
                "C:\\w.bin",
            ]
        ),
        "offset": rnd.choice(["0", "", "abc", "-5", "1.5", "4096", "9" * 40, "٣"]),
        "length": rnd.choice(["", "8", "864", "-1", "9" * 19, "x"]),
    }
    for key, value in entries.items():
        if rnd.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


@edited
def wiring(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Nodes read or make other tensors: lost, doubled, in a circle, too many, none."""
    names = [o for n in model.graph.node for o in n.output] + ["x", "nowhere", ""]
    node = rnd.choice(list(model.graph.node))
    kind = rnd.randrange(5)
    if kind == 0 and node.input:
        node.input[rnd.randrange(len(node.input))] = rnd.choice(names)
    elif kind == 1:
        node.output[0] = rnd.choice(names)
    elif kind == 2:
        node.input.extend(rnd.choices(names, k=rnd.choice([1, 3, 200])))
    elif kind == 3:
        del node.input[:]
    else:
        del node.output[rnd.randrange(len(node.output)) :]


@edited
def nodes(model: onnx.ModelProto, rnd: random.Random) -> None:
    """A node is lost, doubled, renamed, or becomes another operator or domain."""
    at, count = rnd.randrange(len(model.graph.node)), len(model.graph.node)
    node, kind = model.graph.node[at], rnd.randrange(6)
    if kind == 0:
        del model.graph.node[at]
    elif kind == 1:
        model.graph.node.insert(rnd.randrange(count), node)
    elif kind == 2:
        node.name = rnd.choice(WORDS)
    elif kind == 3:
        node.op_type = rnd.choice(["Conv", "If", "Loop", "Scan", "Resize", "Softmax", "Einsum", ""])
    elif kind == 4:
        node.domain = rnd.choice(["com.microsoft", "ai.onnx.ml", "nobody", "\0"])
    else:
        order = list(model.graph.node)
        rnd.shuffle(order)
        del model.graph.node[:]
        model.graph.node.extend(order)


@edited
def ports(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Inputs and outputs of another type, size, name or number."""
    values = rnd.choice([model.graph.input, model.graph.output])
    value, kind = values[0], rnd.randrange(6)
    if kind == 0:
        value.type.tensor_type.elem_type = rnd.choice([0, 2, 7, 8, 9, 10, 11, 16, 99])
    elif kind == 1:
        value.type.tensor_type.shape.dim[rnd.randrange(2)].dim_value = rnd.choice(NUMBERS)
    elif kind == 2:
        value.name = rnd.choice([*WORDS, "c1", "c"])
    elif kind == 3:
        del values[:]
    elif kind == 4:
        values.append(value)
    else:
        value.ClearField("type")


@edited
def versions(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Opsets and versions that are none."""
    if rnd.random() < 0.5:
        model.opset_import[0].version = rnd.choice([-1, 0, 1, 5, 7, 9, 12, 13, 21, 25, 99, 2**40])
    elif rnd.random() < 0.5:
        del model.opset_import[:]
    else:
        model.ir_version = rnd.choice([-1, 0, 1, 3, 7, 13, 14, 999, 2**40])


@edited
def functions(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Functions that call themselves, each other, or twice the next one, thirty times over."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    depth, ring = rnd.choice([1, 2, 30, 80]), rnd.random() < 0.5
    for level in range(depth):
        after = (level + 1) % depth if ring else level + 1
        last = not ring and level == depth - 1
        call = helper.make_node("Relu" if last else f"F{after}", ["a"], ["m"], domain="" if last else "local")
        again = helper.make_node(call.op_type, ["m"], ["b"], domain=call.domain)
        model.functions.append(helper.make_function("local", f"F{level}", ["a"], ["b"], [call, again], opsets))
    model.opset_import.append(opsets[1])
    model.graph.node[2].op_type, model.graph.node[2].domain = "F0", "local"


@edited
def bombs(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Constants, tiles, ranges and resizes that make more than any memory holds."""
    size = rnd.choice([2**14, 2**17, 2**20, 2**31])

    def constant(name: str, values: object) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        return name

    kinds = {
        "ConstantOfShape": lambda: [constant("big", [size, size])],
        "Expand": lambda: ["fb", constant("big", [size, size, 10])],
        "Tile": lambda: ["fb", constant("big", [size * 2**12])],
        "Range": lambda: [constant("zero", 0), constant("end", size * 2**14), constant("one", 1)],
        "Pad": lambda: ["fb", constant("big", [size, size * 2**13])],
    }
    kind = rnd.choice(list(kinds))
    model.graph.node.insert(0, helper.make_node(kind, kinds[kind](), ["bomb"], "bomb"))
    model.graph.node.insert(1, helper.make_node("Cast", ["bomb"], ["cast"], to=1))
    model.graph.node.insert(2, helper.make_node("ReduceMax", ["cast"], ["most"], keepdims=0))
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("Add", ["z", "most"], ["y"]))


@edited
def loops(model: onnx.ModelProto, rnd: random.Random) -> None:
    """Loops of many turns, or without an end, and graphs nested deep."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    turns = rnd.choice([None, 0, 3, 2**40, 2**62, -1])
    if turns is not None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(turns), "turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    for _ in range(rnd.choice([0, 0, 0, 5, 40])):
        inner = helper.make_node("If", ["true"], ["next"], then_branch=_branch(body), else_branch=_branch(body))
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"]), inner], "body", list(body.input), list(body.output)
        )
        if len(body.SerializeToString()) > 200_000:
            break
    model.graph.node[2].CopyFrom(
        helper.make_node("Loop", ["" if turns is None else "turns", "true", "n"], ["a"], "loop_2", body=body)
    )


def _branch(body: onnx.GraphProto) -> onnx.GraphProto:
    part = onnx.GraphProto()
    part.CopyFrom(body)
    del part.input[:]
    del part.output[0]
    return part


MUTATORS: tuple[Mutator, ...] = (
    flipped_bits, cut_off, spliced, noise, bad_text, attribute_value, attribute_type, weight_shape, weight_data,
    external_data, wiring, nodes, ports, versions, functions, bombs, loops, structures.nested_cut,
    *map(edited, structures.EDITS),
)  # fmt: skip


def mutants(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of ``count`` files, all mutators by turns; every fifth file is mutated twice."""
    data = small_model().SerializeToString()
    for number in range(count):
        rnd = random.Random(seed * 1_000_003 + number)
        mutate = MUTATORS[number % len(MUTATORS)]
        try:
            made = mutate(data, rnd)
            if number % 5 == 0:
                made = rnd.choice(MUTATORS[:5])(made, rnd)
        except (ValueError, TypeError, IndexError):  # protobuf itself holds no such value
            made = flipped_bits(data, rnd)
        yield f"{mutate.__name__}-{seed}-{number}", made
