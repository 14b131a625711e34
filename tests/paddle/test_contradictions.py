"""A setting that another one would silently win over is refused by its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.errors import ConfigError
from quantrim.paddle import PostTrainingQuantization, quant_aware
from quantrim.paddle.settings import config_from_paddle
from tests.paddle.test_settings import PADDLESEG

PACT = {"activation_preprocess_type": "PACT"}
LISTED = {"quantizable_layer_type": ["Conv2D"], "quantize_op_types": ["conv2d"]}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"scale_trainable": True, "activation_preprocess_type": "PACT"}, "scale_trainable"),
        ({"scale_trainable": True, "activation_quantize_type": "range_abs_max"}, "activation_quantize_type"),
        (
            {"activation_preprocess_type": "PACT", "activation_quantize_type": "abs_max"},
            "activation_quantize_type",
        ),
        ({"scale_trainable": True, "weight_quantize_type": "range_abs_max"}, "weight_quantize_type"),
        ({"for_tensorrt": True, "deploy_backend": "mkldnn"}, "deploy_backend"),
        (LISTED, "quantize_op_types"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, field):
    with pytest.raises(ConfigError) as caught:
        config_from_paddle(settings)
    assert caught.value.field == field
    assert field in str(caught.value)


def test_the_tutorials_dictionary_with_every_key_is_taken():
    assert config_from_paddle(PADDLESEG | PACT)


def test_the_evaluation_view_takes_the_same_settings_and_no_others():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    trained = quant_aware(net, config={"weight_bits": 8}, example_inputs=torch.zeros(1, 3, 8, 8))
    quant_aware(trained, config={"weight_bits": 8}, for_test=True)
    quant_aware(trained, for_test=True)
    with pytest.raises(ConfigError, match="config differs"):
        quant_aware(trained, config={"weight_bits": 4}, for_test=True)


def test_post_training_refuses_names_that_lead_nowhere(residual_onnx):
    data = {"data_loader": [np.zeros((2, 3, 32, 32), np.float32)]}
    with pytest.raises(ConfigError, match=r"model_filename 'm\.onnx': there is no model_dir"):
        PostTrainingQuantization(residual_onnx, model_filename="m.onnx", **data)
    with pytest.raises(ConfigError, match="deploy_backend is 'mkldnn', but target is 'tensorrt'"):
        PostTrainingQuantization(residual_onnx, target="tensorrt", deploy_backend="mkldnn", **data)
