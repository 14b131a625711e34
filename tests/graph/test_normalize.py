import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from quantrim.errors import ModelError
from quantrim.graph import graph_from_onnx, macs, normalize, prove_equal, random_feed, read_onnx
from quantrim.graph.from_torch import export_onnx


def model_of(nodes, inputs, outputs, constants=(), opset=18) -> ir.Model:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def info(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def batch_norm(name: str, channels: int):
    generator = np.random.default_rng(0)
    arrays = [generator.uniform(0.5, 2, channels) for _ in range(4)]
    return [numpy_helper.from_array(a.astype(np.float32), f"{name}{i}") for i, a in enumerate(arrays)]


def test_batch_norm_behind_a_convolution_is_folded_into_it():
    weight = numpy_helper.from_array(np.random.randn(4, 3, 3, 3).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "n0", "n1", "n2", "n3"], ["y"]),
    ]
    model = model_of(nodes, [info("x", ["N", 3, 8, 8])], [info("y", None)], [weight, *batch_norm("n", 4)])
    normal = normalize(model)
    assert [node.op_type for node in normal.graph] == ["Conv"]
    assert prove_equal(model, normal, random_feed(model)) < 1e-5


def test_batch_norm_with_nothing_to_fold_into_becomes_a_depthwise_convolution():
    node = helper.make_node("BatchNormalization", ["x", "n0", "n1", "n2", "n3"], ["y"])
    model = model_of([node], [info("x", ["N", 4, 5, 5])], [info("y", ["N", 4, 5, 5])], batch_norm("n", 4))
    normal = normalize(model)
    assert [(n.op_type, n.attributes.get_int("group")) for n in normal.graph] == [("Conv", 4)]
    assert prove_equal(model, normal, random_feed(model)) < 1e-6


@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_spatial_mean_becomes_a_pool(keepdims):
    axes = numpy_helper.from_array(np.array([-1, -2]), "axes")
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims)
    shape = ["N", 4, 1, 1] if keepdims else ["N", 4]
    model = model_of([node], [info("x", ["N", 4, 5, 5])], [info("y", shape)], [axes])
    normal = normalize(model)
    assert next(iter(normal.graph)).op_type == "GlobalAveragePool"
    assert [output.name for output in normal.graph.outputs] == ["y"]
    assert prove_equal(model, normal, random_feed(model)) < 1e-6


def test_names_and_dynamic_axes_of_inputs_and_outputs_stay(residual_onnx):
    original, normal = read_onnx(residual_onnx), normalize(read_onnx(residual_onnx))
    for before, after in zip(
        (*original.graph.inputs, *original.graph.outputs),
        (*normal.graph.inputs, *normal.graph.outputs),
        strict=True,
    ):
        assert (before.name, str(before.shape)) == (after.name, str(after.shape))


def test_an_old_opset_is_converted(tmp_path):
    weight = numpy_helper.from_array(np.random.randn(4, 3, 1, 1).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [info("x", [1, 3, 4, 4])], [info("y", [1, 4, 4, 4])], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), tmp_path / "m.onnx"
    )
    assert read_onnx(tmp_path / "m.onnx").opset_imports[""] >= 13


def test_macs_of_convolution_and_linear_layers_follow_the_textbook(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(),
                           nn.Linear(8 * 6 * 6, 5))  # fmt: skip
    export_onnx(module, torch.randn(1, 3, 16, 16), tmp_path / "m.onnx")
    model = normalize(read_onnx(tmp_path / "m.onnx"))
    graph = graph_from_onnx(model, random_feed(model))
    counted = [macs(graph, node) for node in graph.nodes if node.weight]
    assert counted == [8 * 8 * 8 * 27, 8 * 6 * 6 * 2 * 9, 8 * 6 * 6 * 5]


@pytest.mark.parametrize("content", [b"", b"not an onnx file", b"\x08\x07\x12\x04abcd"])
def test_a_file_that_is_no_model_gives_one_clear_line(tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx: not an ONNX file") as caught:
        read_onnx(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path, residual_onnx):
    data = residual_onnx.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="truncated"):
        read_onnx(tmp_path / "cut.onnx")


def test_a_missing_file_is_named():
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file"):
        read_onnx("nowhere.onnx")


def test_a_half_precision_model_is_sent_back():
    node = helper.make_node("Relu", ["x"], ["y"])
    half = TensorProto.FLOAT16
    model = model_of([node], [info("x", [1, 3], half)], [info("y", [1, 3], half)])
    with pytest.raises(ModelError, match="16-bit float"):
        normalize(model)


def test_an_integer_model_is_sent_back():
    node = helper.make_node("Identity", ["x"], ["y"])
    model = model_of([node], [info("x", [1, 3], TensorProto.INT64)], [info("y", [1, 3], TensorProto.INT64)])
    with pytest.raises(ModelError, match="no float32 input"):
        normalize(model)


def test_an_unknown_operator_is_named():
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")
    graph = helper.make_graph([node], "g", [info("x", [1, 3])], [info("y", [1, 3])])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    with pytest.raises(ModelError, match="Frobnicate"):
        prove_equal(model, normalize(model), random_feed(model))
