"""Files of any age and make: what their spelling means, checked against the float model on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import quantrim as qt
from quantrim.errors import ModelError
from quantrim.graph import normalize, prove_equal, random_feed, read_onnx
from quantrim.graph.ports import input_ports

GENERATOR = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return (GENERATOR.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def info(name: str, shape: object, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def file_of(path, nodes, inputs, outputs, constants, *, opset=17, ir_version=8) -> Path:
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([helper.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in nodes], "g",
                              inputs, outputs, stored)  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def run(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)


NET = [("Conv", ["x", "w"], ["c"], {"pads": [1] * 4}), ("Relu", ["c"], ["r"]), ("Conv", ["r", "v"], ["y"])]


@pytest.mark.parametrize("opset", [7, 9, 12, 17])
def test_weights_that_are_listed_as_inputs_are_constants(tmp_path, opset):
    constants = {"w": weights(8, 3, 3, 3), "v": weights(4, 8, 1, 1)}
    inputs = [info("x", [1, 3, 8, 8]), *(info(name, array.shape) for name, array in constants.items())]
    path = file_of(tmp_path / "m.onnx", NET, inputs, [info("y", None)], constants, opset=opset, ir_version=3)
    model = read_onnx(path)
    assert [port.name for port in input_ports(model)] == ["x"]
    assert prove_equal(model, normalize(model), random_feed(model)) < 1e-6


@pytest.mark.parametrize("shape", [[-1, 3, 8, 8], [-1, 3, -1, -1]])
def test_a_negative_size_is_an_open_axis(tmp_path, shape):
    constants = {"w": weights(8, 3, 3, 3), "v": weights(4, 8, 1, 1)}
    path = file_of(tmp_path / "m.onnx", NET, [info("x", shape)], [info("y", [-1, 4, -1, -1])], constants)
    assert input_ports(read_onnx(path))[0].shape == tuple(None if d < 0 else d for d in shape)
    data = GENERATOR.standard_normal((6, 3, 8, 8)).astype(np.float32)
    result = qt.ptq(path, data, tmp_path / "int8.onnx", engines=["onnxruntime"], accept="any")
    assert result.engines[0].verdict.int8_mac_share == 1.0


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("cast_at_the_end", [True, False])
def test_16_bit_floats_behind_float32_inputs_are_widened_and_outputs_keep_their_type(kind, cast_at_the_end):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=kind), helper.make_node("Conv", ["h", "w"], ["c"])]
    nodes += [helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT)] if cast_at_the_end else []
    end = info("y", [1, 8, 6, 6]) if cast_at_the_end else info("c", [1, 8, 6, 6], kind)
    stored = [numpy_helper.from_array(weights(8, 3, 3, 3).astype(dtype), "w")]
    graph = helper.make_graph(nodes, "g", [info("x", [1, 3, 8, 8])], [end], stored)
    model = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    original = ir.serde.deserialize_model(model)
    normal = normalize(original)
    assert {v.const_value.dtype for v in normal.graph.initializers.values()} == {ir.DataType.FLOAT}
    assert normal.graph.outputs[0].dtype == original.graph.outputs[0].dtype
    if kind == TensorProto.FLOAT16:  # ONNX Runtime has no BFLOAT16 convolution on the CPU
        assert prove_equal(original, normal, random_feed(original)) < 1e-3


def quantized_file(folder: Path) -> Path:
    constants = {"w": weights(8, 3, 3, 3), "v": weights(4, 8, 1, 1)}
    path = file_of(folder / "m.onnx", NET, [info("x", ["N", 3, 8, 8])], [info("y", None)], constants)
    data = GENERATOR.standard_normal((4, 3, 8, 8)).astype(np.float32)
    qt.ptq(path, data, folder / "int8.onnx", engines=())
    return folder / "int8.onnx"


def test_a_quantized_file_is_sent_back_in_one_line(tmp_path):
    model = read_onnx(quantized_file(tmp_path))
    with pytest.raises(ModelError, match="quantized already") as caught:
        normalize(model)
    assert "\n" not in str(caught.value)


LINEAR = {
    "matmul": [("MatMul", ["x", "w"], ["h"]), ("Add", ["h", "b"], ["a"])],
    "constant first": [("MatMul", ["x", "w"], ["h"]), ("Add", ["b", "h"], ["a"])],
    "gemm": [("Gemm", ["x", "w", "b"], ["a"])],
    "scaled gemm": [("Gemm", ["x", "w", "b"], ["a"], {"alpha": 0.5, "beta": 3.0})],
}


@pytest.mark.parametrize("form", LINEAR)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (16,), (1, 16), (6, 16), (6, 1)])
def test_whatever_is_added_to_a_product_of_matrices_is_a_vector_or_stands_alone(tmp_path, form, shape):
    constants = {"w": weights(12, 16), "b": np.float32(GENERATOR.random(shape)), "v": weights(16, 4)}
    nodes = [*LINEAR[form], ("Relu", ["a"], ["r"]), ("MatMul", ["r", "v"], ["y"])]
    path = file_of(tmp_path / "m.onnx", nodes, [info("x", [6, 12])], [info("y", [6, 4])], constants)
    normal = normalize(read_onnx(path))
    for node in normal.graph:
        if node.op_type == "Gemm" and len(node.inputs) > 2:
            assert len(node.inputs[2].const_value.shape) == 1
    data = GENERATOR.standard_normal((24, 12)).astype(np.float32)
    qt.ptq(path, data, tmp_path / "int8.onnx", engines=["openvino", "onnxruntime"], accept="any")
    wanted, got = (run(tmp_path / name, {"x": data[:6]})[0] for name in ("m.onnx", "int8.onnx"))
    assert np.linalg.norm(got - wanted) < 0.03 * np.linalg.norm(wanted)


def test_an_addend_that_is_computed_becomes_an_add(tmp_path):
    nodes = [("Gemm", ["x", "w"], ["a"]), ("Gemm", ["x", "v", "a"], ["y"])]
    constants = {"w": weights(12, 16), "v": weights(12, 16)}
    path = file_of(tmp_path / "m.onnx", nodes, [info("x", [6, 12])], [info("y", [6, 16])], constants)
    model = read_onnx(path)
    normal = normalize(model)
    assert sorted(node.op_type for node in normal.graph) == ["Add", "Gemm", "Gemm"]
    assert prove_equal(model, normal, random_feed(model)) < 1e-6


CONV = ("Conv", ["x", "w", "b"], ["c"])
UP = ("ConvTranspose", ["x", "t", "b"], ["c"], {"group": 2})


@pytest.mark.parametrize("linear", [CONV, UP, ("Conv", ["x", "w"], ["c"])], ids=["conv", "up", "no bias"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (), (1,)])
def test_scales_and_shifts_behind_a_linear_op_go_into_it(tmp_path, linear, shape):
    def drawn() -> np.ndarray:
        return GENERATOR.uniform(0.5, 2.0, shape).astype(np.float32)

    nodes = [linear, ("Mul", ["k", "c"], ["m"]), ("Add", ["m", "s"], ["a"]), ("Sub", ["a", "d"], ["u"]),
             ("Div", ["u", "q"], ["y"])]  # fmt: skip
    constants = {"w": weights(8, 4, 3, 3), "t": weights(4, 4, 2, 2), "b": weights(8)}
    constants = {name: array for name, array in constants.items() if name in linear[1]}
    constants |= {name: drawn() for name in "ksdq"}
    path = file_of(tmp_path / "m.onnx", nodes, [info("x", ["N", 4, 6, 6])], [info("y", None)], constants)
    model = read_onnx(path)
    normal = normalize(model)
    assert [node.op_type for node in normal.graph] == [linear[0]]
    assert [value.name for value in normal.graph.outputs] == ["y"]
    assert prove_equal(model, normal, random_feed(model)) < 1e-6


def test_what_is_no_scale_of_channels_stays(tmp_path):
    nodes = [CONV, ("Mul", ["c", "k"], ["m"]), ("Div", ["q", "m"], ["y"])]
    constants = {
        "w": weights(8, 4, 3, 3),
        "b": weights(8),
        "k": weights(1, 8, 4, 4),
        "q": np.ones(1, np.float32),
    }
    path = file_of(tmp_path / "m.onnx", nodes, [info("x", ["N", 4, 6, 6])], [info("y", None)], constants)
    assert [node.op_type for node in normalize(read_onnx(path)).graph] == ["Conv", "Mul", "Div"]
