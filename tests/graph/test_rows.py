"""Tokens as rows and back: what OpenVINO makes of an INT8 file with scaled columns before a Reshape."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, save

import quantrim as qt
from quantrim.engines import open_session
from quantrim.graph import normalize, prove_equal, random_feed, read_onnx

GENERATOR = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return (GENERATOR.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[:-1])))).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


HEAD = [
    ("Conv", ["x", "w"], ["c"], {"strides": [4, 4]}),
    ("Reshape", ["c", "tokens"], ["f"]),
    ("Transpose", ["f"], ["t"], {"perm": [0, 2, 1]}),
]
PRODUCT = [*HEAD, ("MatMul", ["t", "l"], ["m"]), ("Reshape", ["m", "rows"], ["r"])]
BACK = ("Reshape", ["n", "back"], ["y"])
NETS = {
    "batch norm": [*PRODUCT, ("BatchNormalization", ["r", "k", "s", "mean", "var"], ["n"]), BACK],
    "batch norm behind a relu": [
        *PRODUCT, ("Relu", ["r"], ["a"]), ("BatchNormalization", ["a", "k", "s", "mean", "var"], ["n"]), BACK,
    ],
    "biased layer": [
        *HEAD, ("MatMul", ["t", "l"], ["m0"]), ("Add", ["m0", "s"], ["m"]), ("Reshape", ["m", "rows"], ["r"]),
        ("Mul", ["k", "r"], ["n"]), BACK,
    ],
    "division": [*PRODUCT, ("Relu", ["r"], ["a"]), ("Div", ["a", "k"], ["n"]), BACK],
    "rows": [*HEAD, ("Reshape", ["t", "rows32"], ["r"]), ("MatMul", ["r", "l"], ["n"]), BACK],
    "transposed rows": [
        *HEAD, ("Reshape", ["t", "rows32"], ["r"]), ("Gemm", ["r", "lt"], ["n"], {"transB": 1}), BACK,
    ],
    "two layers": [*PRODUCT, ("MatMul", ["r", "l2"], ["n"]), BACK],
}  # fmt: skip
CONSTANTS = {
    "w": drawn(32, 3, 4, 4), "l": drawn(32, 16), "lt": drawn(16, 32), "l2": drawn(16, 16), "s": drawn(16),
    "k": np.float32(GENERATOR.uniform(0.3, 3, 16)), "mean": drawn(16), "var": np.float32(GENERATOR.random(16)),
    "tokens": i64(0, 32, -1), "rows": i64(-1, 16), "rows32": i64(-1, 32), "back": i64(-1, 16, 16),
}  # fmt: skip


@pytest.fixture(params=NETS)
def file(request, tmp_path):
    nodes = [helper.make_node(n[0], n[1], n[2], **(n[3] if len(n) > 3 else {})) for n in NETS[request.param]]
    used = {name for node in nodes for name in node.input}
    stored = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
             for name, shape in (("x", ["N", 3, 16, 16]), ("y", ["N", 16, 16]))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx"
    )
    return tmp_path / "m.onnx"


def test_the_function_stays_the_same(file):
    model = read_onnx(file)
    assert prove_equal(model, normalize(model), random_feed(model, (3, 3, 16, 16))) < 1e-6


@pytest.mark.parametrize("refinements", [(), ("bias",)])
def test_openvino_computes_from_the_int8_file_what_onnxruntime_does(file, refinements):
    x = np.random.default_rng(1).standard_normal((6, 3, 16, 16)).astype(np.float32)
    int8 = file.with_name("int8.onnx")
    qt.ptq(file, x, int8, target="openvino", engines=(), refinements=refinements, samples=None)
    expected = ort.InferenceSession(str(file)).run(None, {"x": x})[0]
    got = open_session(int8, "openvino").run({"x": x})["y"]
    assert 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(expected - got)) > 25
