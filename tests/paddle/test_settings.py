"""PaddleSlim's settings and names, with its known defects gone."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from quantrim import paddle
from quantrim.errors import ConfigError, ModelError
from quantrim.graph.ops import OPS
from quantrim.paddle import OPERATORS, config_from_paddle
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


def test_none_is_every_default_of_paddleslim_its_operators_among_them():
    settings = config_from_paddle(None)
    assert settings == config_from_paddle({"quantize_op_types": ["conv2d", "depthwise_conv2d", "mul"]})
    assert settings.config == replace(QATConfig(), op_types=settings.config.op_types)
    assert settings.target == "portable"
    assert config_from_paddle({"is_full_quantize": True}).config == QATConfig()


def test_the_word_with_a_spelling_mistake_of_the_tutorial_gets_the_right_one():
    words = ["depthwise_conv2d", "mul", "conv2d", "elmentwise_add", "pool2d"]
    with pytest.raises(ConfigError, match="did you mean 'elementwise_add'"):
        config_from_paddle({"quantize_op_types": words})


@pytest.mark.parametrize("word", sorted(OPERATORS))
def test_an_operator_is_quantized_or_said_to_stay_float(word: str):
    target = target_named("portable")
    done = target.runs_int8 | target.fuse | {"batch_norm"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        types = config_from_paddle({"quantize_op_types": ["conv2d", word]}).config.op_types
    assert bool(caught) != bool(OPERATORS[word] & done)
    assert OPERATORS[word] & target.runs_int8 <= (types or set())


def test_every_canonical_op_of_the_table_exists():
    assert set().union(*OPERATORS.values()) <= OPS.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantizable_layer_type": ["Conv2DTranspose"]}, "target 'portable' runs no layer in INT8"),
        ({"quantize_op_types": ["softmax"]}, "target 'portable' runs no layer in INT8"),
        ({"fuse_conv_bn": "bananas"}, "fuse_conv_bn is 'bananas'; legal: True, False"),
        ({"onnx_format": "bananas"}, "onnx_format is 'bananas'"),
        ({"quantize_op_types": "conv2d"}, "give a list of names"),
        ({"weight_quantize_type": {}}, "weight_quantize_type is {}"),
        ({"deploy_backend": "ARM"}, "Paddle Lite is not in scope"),
        ({"scale_trainable": True, "activation_preprocess_type": "PACT"}, "learns the scales"),
        ({"weight_bits": 17}, "1 to 16"),
        ({"moving_rate": 2.0}, "moving_rate"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*stays float")
def test_values_that_nothing_can_obey_are_refused(given: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        config_from_paddle(given)


def test_switches_of_later_versions_work_or_say_that_they_change_nothing():
    assert config_from_paddle({"fuse_conv_bn": True}).config.freeze_batch_norm_at == 0
    learned = config_from_paddle({"scale_trainable": True}).config
    assert (learned.weight, learned.activation) == ("lsq", "lsq")
    for given in ({"quant_post_first": True}, {"onnx_format": False}):
        with pytest.warns(UserWarning, match="changes nothing here"):
            config_from_paddle(given)


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
    with pytest.raises(ConfigError, match="learned thresholds"):
        quanter.quantize(net)
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


class Spec:
    """As paddle.static.InputSpec."""

    shape, dtype, name = (None, 3, 8, 8), "float32", "image"


@pytest.mark.parametrize("inplace", [True, False])
def test_without_example_inputs_the_first_batch_is_traced_and_quantized(tmp_path: Path, inplace: bool):
    torch.manual_seed(0)
    net, twin = Small(3), Small(3)
    twin.load_state_dict(net.state_dict())
    quanter = paddle.QAT(SEED_004)
    made = quanter.quantize(net, inplace=inplace)
    assert (made is net) == inplace
    keys = set(made.state_dict())
    first = made.train()(IMAGE)
    assert keys < set(made.state_dict())
    expected = paddle.QAT(SEED_004).quantize(twin, IMAGE).train()(IMAGE)
    torch.testing.assert_close(first, expected, rtol=0, atol=0)
    result = quanter.save_quantized_model(made, tmp_path / "model", input_spec=[Spec()])
    assert result.agreement.beyond_edge == 0
    assert onnx.load(result.path).graph.input[0].name == "image"


def test_an_untrained_model_is_saved_by_its_input_spec_and_by_nothing_else(tmp_path: Path):
    quanter = paddle.QAT()
    net = quanter.quantize(Small(3))
    with pytest.raises(ModelError, match="not called since"):
        quanter.save_quantized_model(net, tmp_path / "model")
    with pytest.raises(ConfigError, match="only the first axis may be open"):
        quanter.save_quantized_model(net, tmp_path / "model", input_spec=[None, 3, None, None])
    assert quanter.save_quantized_model(net, tmp_path / "model", input_spec=[[None, 3, 8, 8]]).path.is_file()


def test_quant_aware_and_convert_train_evaluate_and_freeze_one_module(tmp_path: Path):
    torch.manual_seed(0)
    net, config = Small(3), {"quantize_op_types": ["depthwise_conv2d", "mul", "conv2d", "elementwise_add"]}
    exact = net(IMAGE).detach()
    program = paddle.quant_aware(net, "cpu", config, for_test=False)
    held_out = paddle.quant_aware(net, object(), for_test=True)
    program.train()(IMAGE).sum().backward()
    judged = held_out(IMAGE)
    assert program.training
    assert 0 < float((judged - exact).norm() / exact.norm()) < 0.05
    done = paddle.convert(program, "cpu", config)
    assert not done.training
    assert not any(p.requires_grad for p in done.parameters())
    torch.testing.assert_close(done(IMAGE), judged)
    assert paddle.save_quantized_model(done, tmp_path / "model").agreement.beyond_edge == 0
    with pytest.raises(ConfigError, match="save_int8"):
        paddle.convert(program, save_int8=True)
    with pytest.raises(ModelError, match="was not quantized"):
        paddle.convert(Small(3))


def test_any_width_is_simulated_and_only_what_a_file_holds_is_exported(tmp_path: Path):
    torch.manual_seed(0)
    conv, errors = nn.Conv2d(3, 8, 3), []
    exact = conv(IMAGE).detach()
    for bits in range(1, 17):
        net = nn.Sequential(copy.deepcopy(conv))
        made = paddle.QAT({"weight_bits": bits, "activation_bits": 16}).quantize(net, IMAGE)
        errors.append(float((made.train()(IMAGE) - exact).norm() / exact.norm()))
        made.eval()(IMAGE).sum().backward()
        assert net[0].weight.grad is not None
    assert errors[1:] == sorted(errors[1:], reverse=True)
    assert errors[0] < 0.6
    for bits, activation in ((1, 8), (9, 8), (8, 1), (8, 16)):
        quanter = paddle.QAT({"weight_bits": bits, "activation_bits": activation})
        net = quanter.quantize(nn.Sequential(copy.deepcopy(conv)), IMAGE)
        with pytest.raises(ConfigError, match="in simulation only"):
            quanter.save_quantized_model(net, tmp_path / "model")
