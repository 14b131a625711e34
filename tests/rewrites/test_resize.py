"""Resize as two products, and its order with 1x1 convolutions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.graph.from_onnx import observed_shapes
from quantrim.rewrites import RESIZE_AS_MATMULS, RESIZE_ORDER, sites_of
from tests.rewrites.graphs import check, feeds_of, graph, node, ops

SIZES = st.integers(1, 9)
MODES = st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])


def resize(inputs, output, mode="linear", transformation="half_pixel"):
    return node("Resize", inputs, output, mode=mode, coordinate_transformation_mode=transformation,
                nearest_mode="floor")  # fmt: skip


def sizes(*shape):
    return np.array(shape, np.int64)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, MODES, st.sampled_from(["linear", "cubic"]))
def test_any_linear_or_cubic_resize_is_two_products(height, width, high, wide, transformation, mode):
    if (height, width) == (high, wide):
        return
    shape = (2, 3, height, width)
    model = graph([resize("x - - s", "y", mode, transformation)], shape, {"s": sizes(2, 3, high, wide)})
    made = check(model, shape, RESIZE_AS_MATMULS)
    assert set(ops(made)) == {"MatMul"}


def test_scales_that_round_the_size_down_keep_their_coordinates():
    model = graph([resize("x - s", "y")], (1, 2, 5, 7), {"s": np.array([1, 1, 1.5, 2.3], np.float32)})
    made = check(model, (1, 2, 5, 7), RESIZE_AS_MATMULS)
    assert made.graph.outputs[0].shape[2:] == (7, 16)


def test_products_that_interpolate_stay_float():
    model = graph([resize("x - - s", "y")], (1, 2, 4, 4), {"s": sizes(1, 2, 8, 8)})
    made = check(model, (1, 2, 4, 4), RESIZE_AS_MATMULS)
    assert all("quantrim.keep_float" in one.metadata_props for one in made.graph)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_dynamic_batch_stays_dynamic(batch):
    model = graph([resize("x - s", "y")], ("n", 2, 4, 4), {"s": np.array([1, 1, 2, 2], np.float32)})
    check(model, (batch, 2, 4, 4), RESIZE_AS_MATMULS)


def test_images_of_any_size_are_left_alone():
    model = graph([resize("x - s", "y")], (1, 2, "h", "w"), {"s": np.array([1, 1, 2, 2], np.float32)})
    assert not sites_of(model, observed_shapes(model, feeds_of((1, 2, 4, 4))[0]))


def weights(generator, out, inputs):
    return {
        "w": generator.standard_normal((out, inputs, 1, 1)).astype(np.float32),
        "b": generator.standard_normal(out).astype(np.float32),
    }


@settings(max_examples=20, deadline=None)
@given(MODES, st.sampled_from(["linear", "nearest", "cubic"]), st.booleans(), st.integers(1, 4))
def test_a_one_by_one_convolution_commutes_with_resizing(transformation, mode, fixed, out):
    constants = weights(np.random.default_rng(out), out, 3)
    constants["s"] = sizes(2, 3, 8, 10) if fixed else np.array([1, 1, 2, 2], np.float32)
    nodes = [resize("x - - s" if fixed else "x - s", "u", mode, transformation), node("Conv", "u w b", "y")]
    made = check(graph(nodes, (2, 3, 4, 5), constants), (2, 3, 4, 5), RESIZE_ORDER, "convolution first")
    assert ops(made) == ["Conv", "Resize"]


def test_resizing_to_less_comes_first():
    constants = weights(np.random.default_rng(0), 5, 3) | {"s": sizes(1, 5, 2, 2)}
    nodes = [node("Conv", "x w b", "u"), resize("u - - s", "y")]
    made = check(graph(nodes, (1, 3, 8, 8), constants), (1, 3, 8, 8), RESIZE_ORDER, "resize first")
    assert ops(made) == ["Resize", "Conv"]


def test_sizes_of_a_dynamic_batch_are_computed():
    constants = weights(np.random.default_rng(0), 5, 3) | {"hw": sizes(3, 8, 8)}
    nodes = [node("Shape", "x", "n", start=0, end=1), node("Concat", "n hw", "s", axis=0),
             resize("x - - s", "u"), node("Conv", "u w b", "y")]  # fmt: skip
    model = graph(nodes, ("n", 3, 4, 4), constants)
    check(model, (3, 3, 4, 4), RESIZE_ORDER, "convolution first")


@pytest.mark.parametrize("plain", [0, 1, 2])
@pytest.mark.parametrize("resized", [1, 2])
def test_a_convolution_over_a_concat_is_split(plain, resized):
    generator = np.random.default_rng(plain)
    names, nodes, constants = [], [], {}
    for index in range(plain):
        nodes.append(node("Relu" if index else "Neg", "x", f"p{index}"))
        names.append(f"p{index}")
    for index in range(resized):
        nodes.append(node("AveragePool", "x", f"a{index}", kernel_shape=[2, 2], strides=[2 << index] * 2))
        constants[f"s{index}"] = sizes(1, 2, 8, 8)
        nodes.append(resize(f"a{index} - - s{index}", f"r{index}"))
        names.insert(0, f"r{index}")
    constants |= weights(generator, 4, 2 * len(names))
    nodes += [node("Concat", " ".join(names), "c", axis=1), node("Conv", "c w b", "y")]
    made = check(graph(nodes, (1, 2, 8, 8), constants), (1, 2, 8, 8), RESIZE_ORDER, "split")
    assert ops(made).count("Conv") == resized + bool(plain)
