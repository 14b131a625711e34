"""The tester of binary data: lines a batch, and models that return top-1 and top-5 themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantrim.engines import open_session
from quantrim.errors import ModelError
from quantrim.vision.data.binary import evaluate_binary
from quantrim.vision.evaluate import accuracy_layer, engine_predictor


@pytest.fixture(scope="module")
def with_layer(tmp_path_factory):
    """Three classes by the mean of a channel; outputs: logits, then the shares of right first and of all."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=1),
        helper.make_node("Equal", ["best", "label"], ["right"]),
        helper.make_node("Cast", ["right"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["top1"], keepdims=0),
        helper.make_node("Sub", ["top1", "top1"], ["none"]),
        helper.make_node("Add", ["none", "one"], ["top5"]),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("top1", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("top5", TensorProto.FLOAT, []),
    ]
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(nodes, "g", inputs, outputs, [one])
    path = tmp_path_factory.mktemp("layer") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return generator.standard_normal((11, 3, 4, 4)).astype(np.float32), generator.integers(0, 3, 11)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_accuracy_layer_agrees_with_the_logits_where_the_last_batch_is_smaller(with_layer, data, engine):
    images, labels = data
    lines: list[str] = []
    layer = accuracy_layer(open_session(with_layer, engine))
    found = evaluate_binary(None, images, labels, batch_size=4, layer=layer, on_batch=lines.append)
    logits = images.mean(axis=(2, 3))
    assert found["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["top5"] == 1
    assert found["images"] == 11
    assert len(lines) == 3
    assert lines[-1].endswith("of 11 images")


def test_lines_say_what_is_warm_up(residual_onnx, images):
    lines: list[str] = []
    predict = engine_predictor(open_session(residual_onnx, "onnxruntime"))
    evaluate_binary(predict, images, np.zeros(len(images), np.int64), batch_size=12, skip_batch_num=1,
                    on_batch=lines.append)  # fmt: skip
    assert [line.endswith("(warm-up)") for line in lines] == [True, False]


def test_a_model_without_labels_has_no_accuracy_layer(residual_onnx):
    with pytest.raises(ModelError, match="one image input and one integer label input"):
        accuracy_layer(open_session(residual_onnx, "onnxruntime"))
