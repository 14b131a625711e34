import numpy as np
import pytest

from quantrim.errors import ConfigError
from quantrim.paddle.post_training import PostTrainingQuantization


def test_the_three_calls_of_paddleslim_give_a_verified_file(residual_onnx, images, tmp_path):
    quantizer = PostTrainingQuantization(
        residual_onnx, sample_generator=lambda: iter(images), batch_size=4, batch_nums=3, algo="KL",
        is_full_quantize=True,
    )  # fmt: skip
    result = quantizer.quantize()
    assert result.samples == 12
    assert result.engines[0].verdict.int8_mac_share == pytest.approx(1.0)
    path = quantizer.save_quantized_model(tmp_path / "out")
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.ranges.json"]


def test_a_loader_of_pairs_is_read_and_operators_are_selected(residual_onnx, images):
    loader = [(images[:6], np.zeros(6)), (images[6:9], np.zeros(3))]
    result = PostTrainingQuantization(
        residual_onnx, data_loader=loader, quantizable_op_type=["conv2d"]
    ).quantize()
    assert result.samples == 9
    assert [fallback.op for fallback in result.engines[0].verdict.fallbacks] == ["Gemm"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one"),
        ({"data_loader": [], "algo": "KLL"}, "did you mean 'KL'"),
        ({"data_loader": [], "quantizable_op_type": ["elmentwise_add"]}, "did you mean 'elementwise_add'"),
        ({"data_loader": [], "weight_quantize_type": "range"}, "weight_quantize_type"),
    ],
)
def test_mistakes_are_answered_with_the_legal_word(residual_onnx, arguments, words):
    with pytest.raises(ConfigError, match=words):
        PostTrainingQuantization(residual_onnx, **arguments)


def test_saving_before_quantizing_is_an_error(residual_onnx, tmp_path):
    with pytest.raises(ConfigError, match="quantize"):
        PostTrainingQuantization(residual_onnx, data_loader=[]).save_quantized_model(tmp_path)
