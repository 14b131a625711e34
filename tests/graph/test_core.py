"""Models that select by value: where they are compared, and what stays untouched."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import quantrim as qt
from quantrim.graph import graph_from_onnx, normalize, prove_equal, random_feed, read_onnx
from quantrim.graph.core import comparable, selections

GENERATOR = np.random.default_rng(1)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


BODY = [
    ("Conv", ["x", "w"], ["c"], {"strides": [4, 4]}),
    ("Relu", ["c"], ["r"]),
    ("Conv", ["r", "v"], ["h"]),
    ("Reshape", ["h", "flat"], ["a"]),
    ("Transpose", ["a"], ["t"], {"perm": [0, 2, 1]}),
]
TAILS = {
    "NonMaxSuppression": [
        ("Slice", ["t", "zero", "four", "axis"], ["boxes"]),
        ("Slice", ["a", "four", "five", "one"], ["scores"]),
        ("NonMaxSuppression", ["boxes", "scores", "many", "iou", "low"], ["chosen"]),
        ("Gather", ["chosen", "last"], ["index"], {"axis": 1}),
        ("Gather", ["boxes", "index"], ["y"], {"axis": 1}),
    ],
    "Compress": [
        ("ReduceMax", ["t", "ends"], ["s"], {"keepdims": 0}),
        ("Greater", ["s", "level"], ["keep"]),
        ("Compress", ["t", "keep"], ["y"], {"axis": 1}),
    ],
    "TopK": [
        ("ReduceMax", ["t", "ends"], ["s"], {"keepdims": 0}),
        ("TopK", ["s", "five"], ["best", "index"]),
        ("Gather", ["t", "index"], ["g"], {"axis": 1}),
        ("MatMul", ["g", "m"], ["y"]),
    ],
}
CONSTANTS = {
    "w": np.float32(GENERATOR.standard_normal((8, 3, 4, 4)) / 7),
    "v": np.float32(GENERATOR.random((5, 8, 1, 1))),
    "m": np.float32(GENERATOR.standard_normal((5, 6))), "flat": i64(1, 5, -1), "zero": i64(0), "one": i64(1),
    "four": i64(4), "five": i64(5), "axis": i64(2), "ends": i64(0, 2), "last": np.int64(2), "many": i64(20),
    "iou": np.float32([0.5]), "low": np.float32([0.1]),
    "level": np.float32(2.0),
}  # fmt: skip


def model_of(tail: str) -> ir.Model:
    nodes = [helper.make_node(n[0], n[1], n[2], name=n[2][0], **(n[3] if len(n) > 3 else {}))
             for n in (*BODY, *TAILS[tail])]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    stored = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
             for name, shape in (("x", [1, 3, 32, 32]), ("y", [None, None, None]))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    opsets = [helper.make_opsetid("", 18)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize("tail", TAILS)
def test_a_model_is_compared_on_what_its_selection_reads(tail):
    model = model_of(tail)
    assert set(selections(model).values()) == {tail}
    assert "y" not in comparable(model)
    assert set(comparable(model)) <= {"boxes", "scores", "t", "s"}
    assert prove_equal(model, normalize(model), random_feed(model)) < 1e-6


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("target", ["portable", "openvino"])
def test_the_body_is_quantized_and_the_selection_left_alone(tmp_path, tail, target):
    ir.save(model_of(tail), tmp_path / "m.onnx")
    data = np.float32(GENERATOR.standard_normal((8, 3, 32, 32)))
    result = qt.ptq(
        tmp_path / "m.onnx", data, tmp_path / "int8.onnx", target=target, refinements=("bias", "adaround")
    )
    for verdict in result.engines:
        assert min(one.sqnr_db for one in verdict.agreement) > 25
    plan = {n.name: n for n in read_onnx(tmp_path / "int8.onnx").graph}
    weighted = [n for n in plan.values() if n.op_type in ("Conv", "Gemm", "MatMul")]
    int8 = [n.name for n in weighted if n.inputs[1].producer() is not None]
    assert sorted(int8) == ["c", "h"]


def test_top_values_alone_and_sizes_that_are_known_are_no_selection():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["ones"]),
        helper.make_node("NonZero", ["ones"], ["where"]),
        helper.make_node("TopK", ["x", "k"], ["best", ""]),
        helper.make_node("GatherND", ["best", "where_t"], ["y"]),
        helper.make_node("Transpose", ["where"], ["where_t"]),
    ]
    graph = helper.make_graph(
        [nodes[0], nodes[1], nodes[2], nodes[5], nodes[3], nodes[4]],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(i64(8), "k")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert selections(ir.serde.deserialize_model(proto)) == {}


def test_layers_behind_a_selection_are_named_with_the_reason():
    model = normalize(model_of("TopK"))
    graph = graph_from_onnx(model, random_feed(model))
    assert [node.name for node in graph.nodes if "keep_float" in node.attributes] == ["best", "g", "y"]
