import importlib.util

import numpy as np
import pytest

from quantrim.errors import ModelError
from quantrim.graph.from_paddle import paddle_to_onnx
from quantrim.post_training import ptq


def test_a_folder_without_a_program_and_a_program_without_weights_are_told_apart(tmp_path):
    with pytest.raises(ModelError, match="no Paddle program"):
        paddle_to_onnx(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "inference.json").write_text("{}")
    with pytest.raises(ModelError, match="pdiparams"):
        paddle_to_onnx(tmp_path, tmp_path / "m.onnx")


@pytest.mark.skipif(importlib.util.find_spec("paddle2onnx") is not None, reason="the extra is installed")
def test_without_the_extra_the_message_says_how_to_install_it(tmp_path):
    (tmp_path / "inference.json").write_text("{}")
    (tmp_path / "inference.pdiparams").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pip install 'quantrim\[paddle\]'"):
        paddle_to_onnx(tmp_path, tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("paddle", "paddle2onnx")),
    reason="the [paddle] extra is not installed",
)
def test_a_real_paddle_mobilenet_v1_becomes_an_int8_file(tmp_path):
    import paddle

    net = paddle.vision.models.mobilenet_v1(pretrained=False)
    net.eval()
    spec = paddle.static.InputSpec([None, 3, 224, 224], "float32", "image")
    paddle.jit.save(net, str(tmp_path / "model" / "inference"), input_spec=[spec])
    images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
    result = ptq(tmp_path / "model", images, tmp_path / "int8.onnx")
    assert all(one.verdict.int8_mac_share == pytest.approx(1.0) for one in result.engines)
