from pathlib import Path

import numpy as np
import pytest
import yaml

from quantrim.engines import open_session
from quantrim.errors import ConfigError
from quantrim.graph import read_onnx
from quantrim.graph.feeds import IMAGENET
from quantrim.graph.session import save_model
from quantrim.post_training import ptq
from quantrim.recipes.image_file import write_image_file
from quantrim.rewrites.files import ask_precision, asked_precision


@pytest.fixture(params=["float", "int8"])
def model(request, residual_onnx, images, tmp_path):
    if request.param == "float":
        return residual_onnx
    return Path(ptq(residual_onnx, images, tmp_path / "int8.onnx", engines=()).output)


def prepared(pixels):
    mean, std = np.float32(IMAGENET.mean), np.float32(IMAGENET.std)
    return ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).copy()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_uint8_image_gives_the_class_that_normalised_arrays_give(model, engine, tmp_path):
    path = tmp_path / "image.onnx"
    shape = write_image_file(model, path, IMAGENET)
    before, after = open_session(model, engine), open_session(path, engine)
    pixels = np.random.default_rng(0).integers(0, 256, (40, *shape[1:]), np.uint8)
    expected = before.run({before.inputs[0].name: prepared(pixels)})[before.outputs[0].name].argmax(axis=1)
    got = after.run({after.inputs[0].name: pixels})[after.outputs[0].name]
    assert got.dtype == np.int64
    assert np.mean(got == expected) >= 0.95  # ties, and codes at the edge between two


def test_mean_and_std_are_those_of_a_deploy_yaml_and_the_precision_stays(residual_onnx, tmp_path):
    model = read_onnx(residual_onnx)
    ask_precision(model, "bf16")
    save_model(model, tmp_path / "m.onnx")
    transforms = [{"type": "Normalize", "mean": [0.5] * 3, "std": [0.25] * 3}]
    deploy = tmp_path / "deploy.yaml"
    section = {"model": "m.onnx", "task": "detection", "transforms": transforms, "output": "raw"}
    deploy.write_text(yaml.safe_dump({"Deploy": section}))
    write_image_file(tmp_path / "m.onnx", tmp_path / "image.onnx", deploy)
    assert asked_precision(tmp_path / "image.onnx") == "bf16"
    sessions = [open_session(tmp_path / name, "onnxruntime") for name in ("m.onnx", "image.onnx")]
    _, height, width, _ = sessions[1].inputs[0].shape
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    arrays = np.ascontiguousarray(((pixels / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2), np.float32)
    feeds = [{sessions[0].inputs[0].name: arrays}, {sessions[1].inputs[0].name: pixels}]
    one, two = (next(iter(s.run(feed).values())) for s, feed in zip(sessions, feeds, strict=True))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)  # a detector's maps stay as they are


def test_a_deploy_yaml_that_does_not_normalise_is_refused(residual_onnx, tmp_path):
    deploy = tmp_path / "deploy.yaml"
    deploy.write_text(yaml.safe_dump({"Deploy": {"model": "m.onnx", "transforms": []}}))
    with pytest.raises(ConfigError, match="0 transforms normalise"):
        write_image_file(residual_onnx, tmp_path / "image.onnx", deploy)
