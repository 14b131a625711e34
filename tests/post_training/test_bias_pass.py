import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantrim.graph import graph_from_onnx, normalize, random_feed, read_onnx
from quantrim.graph.feeds import calibration_feeds
from quantrim.graph.normalize import run_model
from quantrim.graph.ports import input_ports
from quantrim.placement import place
from quantrim.placement.plan import Plan, WeightQuantization
from quantrim.post_training.calibrate import collect
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.quantize import decide, refine
from quantrim.post_training.refine import bias, refine_weights
from quantrim.post_training.refine.means import InputMeans, taps_of
from quantrim.targets import PORTABLE


def one_layer(kind: str, weight: np.ndarray, shape: tuple[int, ...], **attributes: object) -> ir.Model:
    node = helper.make_node(kind, ["x", "w"], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return ir.from_proto(onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ))  # fmt: skip


def mean_error(model: ir.Model, weight: np.ndarray, x: np.ndarray) -> float:
    """Distance of the mean output that the taps tell and that of the layer itself."""
    graph = graph_from_onnx(model, {"x": x})
    axis = graph.nodes[0].weight.axis
    quantizer = WeightQuantization("layer", "w", axis, None, "x")
    plan = Plan("portable", "u8", frozenset({"layer"}), {"x": "x"}, frozenset({("layer", "x")}), frozenset(),
                {"layer": quantizer}, {})  # fmt: skip
    means = InputMeans(taps_of(model, graph, plan), few=1, batches=1)
    means.add(0, {"x": x})
    made = run_model(model, {"x": x})["y"]
    expected = made.mean(axis=(0, *range(2, made.ndim)), dtype=np.float64)
    told = means.taps["layer"].mean_output(weight, means.of("layer", early=True))
    return float(np.abs(told - expected).max())


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_taps_tell_the_mean_output_of_any_convolution(data):
    kind = data.draw(st.sampled_from(["Conv", "ConvTranspose"]))
    axes, groups = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2]))
    draw = lambda low, high: [data.draw(st.integers(low, high)) for _ in range(axes)]  # noqa: E731
    kernel, steps, holes, sizes = draw(1, 4), draw(1, 3), draw(1, 2), draw(1, 9)
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    reach = [(k - 1) * hole + 1 for k, hole in zip(kernel, holes, strict=True)]
    if kind == "Conv":
        word = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
        padding = {"pads": pads} if word == "NOTSET" else {"auto_pad": word}
        assume(word == "NOTSET" or all(hole == 1 for hole in holes))
        assume(word != "NOTSET" or all(s + a + b >= r for s, a, b, r in
                                       zip(sizes, pads[:axes], pads[axes:], reach, strict=True)))  # fmt: skip
    else:
        padding = {"pads": pads}
        assume(all((s - 1) * step + r - a - b >= 1 for s, step, r, a, b in
                   zip(sizes, steps, reach, pads[:axes], pads[axes:], strict=True)))  # fmt: skip
    channels = (4, 6 // groups) if kind == "ConvTranspose" else (6, 4 // groups)
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((*channels, *kernel)).astype(np.float32)
    x = generator.standard_normal((2, 4, *sizes)).astype(np.float32)
    model = one_layer(kind, weight, x.shape, strides=steps, dilations=holes, group=groups, **padding)
    assert mean_error(model, weight, x) < 1e-4


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_taps_tell_the_mean_output_of_a_fully_connected_layer(transposed):
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((3, 5) if transposed else (5, 3)).astype(np.float32)
    x = generator.standard_normal((4, 5)).astype(np.float32)
    assert mean_error(one_layer("Gemm", weight, x.shape, transB=transposed), weight, x) < 1e-5


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_on_the_same_samples_the_pass_gives_what_a_walk_of_both_models_gives(
    residual_onnx, images, batch, monkeypatch
):
    monkeypatch.setattr(bias, "_known", lambda errors: errors.mean(axis=0))  # the walk's own shrinks means
    model = normalize(read_onnx(residual_onnx))
    graph = graph_from_onnx(model, random_feed(model))
    plan = place(graph, PORTABLE)
    feeds = list(calibration_feeds(images[:6], input_ports(model), batch_size=batch))
    sketches = collect(model, plan.groups, feeds)
    quantized = decide(model, sketches, graph=graph, plan=plan, config=PtqConfig(algo="min_max"))
    one = quantized
    walked = refine_weights(model, graph, plan, one.activations, one.weights, feeds, ["bias"])
    passed = refine(quantized, feeds, ["bias"]).weights
    assert walked.keys() == passed.keys()
    for name, codes in walked.items():
        assert np.abs(codes.bias - passed[name].bias).max() < 1e-3 * max(1.0, np.abs(codes.bias).max()), name
