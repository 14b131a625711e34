"""uint8 image in, answer out: the same as a caller's numpy around the file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.engines import open_session
from quantrim.errors import ConfigError, ModelError
from quantrim.graph.normalize import run_model
from quantrim.graph.session import save_model
from quantrim.rewrites.image import give_answer, take_images
from tests.rewrites.graphs import graph, node, ops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def net(*, gated=False):
    generator = np.random.default_rng(0)
    constants = {"w": generator.standard_normal((5, 3, 3, 3)).astype(np.float32),
                 "b": generator.standard_normal(5).astype(np.float32)}  # fmt: skip
    nodes = [node("Conv", "x w b", "y", pads=[1] * 4, strides=[2, 2])]
    if gated:
        nodes.append(node("Relu", "x", "z"))
    return graph(nodes, ("n", 3, 12, 10), constants, outputs="y z" if gated else "y")


def image(seed=0, batch=2):
    return np.random.default_rng(seed).integers(0, 256, (batch, 12, 10, 3), dtype=np.uint8)


def prepared(pixels):
    values = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


@settings(max_examples=15, deadline=None)
@given(st.booleans(), st.integers(0, 1000))
def test_a_file_that_takes_images_answers_as_with_prepared_ones(gated, seed):
    model, pixels = net(gated=gated), image(seed)
    expected = run_model(model, {"x": prepared(pixels)})
    got = run_model(take_images(model, MEAN, STD), {"x": pixels})
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-3)


def test_the_division_goes_into_the_weights_where_a_convolution_alone_reads_the_image():
    assert "Mul" not in ops(take_images(net(), MEAN, STD))
    assert "Mul" in ops(take_images(net(gated=True), MEAN, STD))
    assert "Sub" not in ops(take_images(net(), (0, 0, 0), STD))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("answer", ["logits", "classes", "probabilities"])
def test_engines_run_it_from_image_to_answer(engine, answer, tmp_path):
    model, pixels = net(), image(batch=1)
    logits = run_model(model, {"x": prepared(pixels)})["y"]
    save_model(give_answer(take_images(model, MEAN, STD), answer), tmp_path / "net.onnx")
    session = open_session(tmp_path / "net.onnx", engine)
    assert session.inputs[0].dtype == np.uint8
    got = session.run({"x": pixels})["y"]
    if answer == "classes":
        assert np.mean(got == logits.argmax(axis=1)) > 0.99
    else:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = logits if answer == "logits" else powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match="the image has 3 channels"):
        take_images(net(), (0.5,), (0.5,))
    with pytest.raises(ConfigError, match="every value must be positive"):
        take_images(net(), MEAN, (1, 0, 1))
    with pytest.raises(ModelError, match="is no float32 image"):
        take_images(take_images(net(), MEAN, STD), MEAN, STD)
