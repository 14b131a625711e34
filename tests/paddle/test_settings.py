"""PaddleSlim's settings and names, with its known defects gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantrim import paddle
from quantrim.errors import ConfigError, ModelError
from quantrim.paddle import config_from_paddle
from quantrim.qat.config import QATConfig
from quantrim.targets import target_named

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEED_004 = {"weight_preprocess_type": None, "quantizable_layer_type": ["Conv2D", "Linear"]}
PADDLESEG = {
    "weight_preprocess_type": None,
    "activation_preprocess_type": None,
    "weight_quantize_type": "channel_wise_abs_max",
    "activation_quantize_type": "moving_average_abs_max",
    "weight_bits": 8,
    "activation_bits": 8,
    "dtype": "int8",
    "window_size": 10000,
    "moving_rate": 0.9,
    "quantizable_layer_type": ["Conv2D", "Linear"],
}


class Small(nn.Module):
    """Its constructor takes an argument, which PaddleSlim 2.0's export with PACT did not survive."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_none_is_every_default():
    settings = config_from_paddle(None)
    assert settings.config == QATConfig()
    assert settings.target == "portable"


@pytest.mark.parametrize("given", [SEED_004, PADDLESEG])
def test_the_tutorials_settings_are_understood(given: dict):
    settings = config_from_paddle(given)
    assert (settings.config.weight, settings.config.activation) == ("abs_max", "moving_average")
    assert settings.config.op_types >= {"conv", "linear", "add"}
    assert "conv_transpose" not in settings.config.op_types


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantize_op_types": ["conv2d", "elmentwise_add"]}, "did you mean 'elementwise_add'"),
        ({"weight_quantise_type": "abs_max"}, "did you mean 'weight_quantize_type'"),
        ({"activation_quantize_type": "channel_wise_abs_max"}, "activation_quantize_type"),
        ({"weight_quantize_type": "abs-max"}, "did you mean 'abs_max'"),
        ({"weight_preprocess_type": "pact"}, "legal: None, PACT"),
        ({"weight_bits": 16}, "2 to 8"),
        ({"dtype": "int4"}, "'int8'"),
        ({"for_tensorrt": "no"}, "True, False"),
        ({"deploy_backend": "ARM9"}, "deploy_backend"),
        ({"quantizable_layer_type": ["Conv2d"]}, "did you mean 'Conv2D'"),
        (["conv2d"], "dictionary, not a list"),
    ],
)
def test_every_wrong_word_is_an_error_with_a_suggestion(given: dict, message: str):
    """PaddleSlim accepts unknown keys, checks activations against the weights' list, and asserts."""
    with pytest.raises(ConfigError, match=message):
        config_from_paddle(given)


def test_types_of_weights_and_activations_map_to_ours():
    def mapped(**given: object) -> QATConfig:
        return config_from_paddle(given).config

    assert not mapped(weight_quantize_type="abs_max").weight_per_channel
    assert mapped(weight_quantize_type="range_abs_max", window_size=5).window_size == 5
    assert mapped(weight_quantize_type="moving_average_abs_max").weight == "moving_average"
    assert mapped(activation_quantize_type="abs_max").activation == "abs_max"
    assert mapped(activation_preprocess_type="PACT").activation == "pact"
    assert mapped(weight_preprocess_type="PACT").weight_preprocess == "pact"
    assert mapped(not_quant_pattern="skip_quant").skip == ()
    assert mapped(not_quant_pattern=["yolo_output"]).skip == ("*yolo_output*",)
    assert mapped(is_full_quantize=True, quantize_op_types=["conv2d"]).op_types is None


def test_deployment_choices_choose_the_target():
    assert config_from_paddle({"for_tensorrt": True}).target == "tensorrt"
    assert config_from_paddle({"deploy_backend": "TensorRT"}).target == "tensorrt"
    assert config_from_paddle({"deploy_backend": "MKLDNN"}).target == "openvino"


def test_only_ops_that_are_listed_are_quantized_and_codes_are_carried_along():
    types = config_from_paddle({"quantize_op_types": ["conv2d", "depthwise_conv2d"]}).config.op_types
    assert types is not None
    assert "add" not in types
    assert "linear" not in types
    assert "reshape" in types
    assert types <= target_named("portable").runs_int8


def test_quantize_returns_the_network_itself(tmp_path: Path):
    """With Paddle before 2.2 quantize() returned None (PaddleSeg #1459)."""
    net = Small(3)
    quanter = paddle.QAT(SEED_004)
    assert quanter.quantize(net, IMAGE) is net
    result = quanter.save_quantized_model(net, tmp_path / "model", input_spec=[None, 3, 8, 8])
    assert result.path == tmp_path / "model.onnx"
    assert result.agreement.beyond_edge == 0


def test_pact_exports_trained_weights_of_a_network_with_constructor_arguments(tmp_path: Path):
    net = Small(3)
    quanter = paddle.QAT({"activation_preprocess_type": "PACT", "weight_preprocess_type": "PACT"})
    quanter.quantize(net, IMAGE)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = net.fc.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        net.train()(IMAGE).square().sum().backward()
        optimizer.step()
    trained = net.fc.weight.detach().clone()
    assert not torch.equal(before, trained)
    assert quanter.save_quantized_model(net, tmp_path / "model").agreement.beyond_edge == 0
    assert torch.equal(net.fc.weight, trained)


def test_classes_of_ones_own_replace_quantizers_and_preprocess_modules():
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    net = Small(3).eval()
    expected = net(IMAGE)
    paddle.QAT(None, Own, Own, Own, Own).quantize(net, IMAGE)
    assert torch.equal(net(IMAGE), expected)
    assert sum(isinstance(m, Own) for m in net.modules()) == 2 * 2 + 2 * 3


def test_a_network_of_another_quanter_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="not made by"):
        paddle.QAT().save_quantized_model(Small(3), tmp_path / "model")
