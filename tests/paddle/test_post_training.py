import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from quantrim.errors import ConfigError
from quantrim.paddle.post_training import PostTrainingQuantization
from quantrim.post_training.quantize import ranges_path


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


def read(images):
    def reader():
        for image in images:
            yield image, 0

    return reader


def test_the_tutorials_call_in_words_and_positions_gives_the_same_file(residual_onnx, images, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(residual_onnx, folder / "model.onnx")
    reader = read(images)
    calls = (
        PostTrainingQuantization(
            executor=object(), sample_generator=reader, model_dir=folder, model_filename="model.onnx",
            params_filename=None, batch_size=5, batch_nums=2, scope=None, algo="KL", is_full_quantize=False,
        ),
        PostTrainingQuantization(None, reader, str(folder), "model.onnx", None, 5, 2),
        PostTrainingQuantization(object(), str(folder), "model.onnx", batch_generator=[images[:10]]),
        PostTrainingQuantization(executor=None, sample_generator=reader(), model_dir=folder, batch_size=5,
                                 batch_nums=2),
    )  # fmt: skip
    files = set()
    for number, call in enumerate(calls):
        assert call.quantize().samples == 10
        files.add(call.save_quantized_model(tmp_path / str(number)).read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("form", ["data_loader", "batch_generator", "iterator"])
def test_batch_nums_counts_the_batches_that_are_given(residual_onnx, images, form):
    batches = [images[i : i + 4] for i in range(0, 16, 4)]
    given = {
        "data_loader": {"data_loader": batches},
        "batch_generator": {"batch_generator": lambda: iter(batches)},
        "iterator": {"batch_generator": iter(batches)},
    }[form]
    assert PostTrainingQuantization(residual_onnx, batch_nums=2, **given).quantize().samples == 8


def graph_of(tmp_path, model, images, **late):
    quantizer = PostTrainingQuantization(
        model, sample_generator=iter(images), batch_nums=1, is_full_quantize=True, **late
    )
    quantizer.quantize()
    return quantizer, onnx.load(quantizer.save_quantized_model(tmp_path)).graph


def test_a_skipped_tensor_is_read_in_float_and_tied_tensors_share_a_scale(residual_onnx, images, tmp_path):
    _, graph = graph_of(tmp_path, residual_onnx, images)
    scales = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    first, *_, last = scales
    assert scales[first] != scales[last]
    _, tied = graph_of(tmp_path, residual_onnx, images, same_scale_tensor_list=[[first, last]])
    found = {node.input[0]: node.input[1] for node in tied.node if node.op_type == "QuantizeLinear"}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in tied.initializer}
    assert values[found[first]] == values[found[last]]
    _, skipped = graph_of(tmp_path, residual_onnx, images, skip_tensor_list=[first])
    assert first not in {node.input[0] for node in skipped.node if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize(
    ("late", "words"),
    [
        ({"round_typ": "round"}, "argument: unknown 'round_typ'; did you mean 'round_type'"),
        ({"round_type": "floor"}, "round_type is 'floor'"),
        ({"weight_bits": 4}, "weight_bits is 4; only 8"),
        ({"activation_quantize_type": "abs_max"}, "activation_quantize_type is 'abs_max'"),
        ({"onnx_format": "yes"}, "onnx_format is 'yes'"),
        ({"deploy_backend": "ARM"}, "Paddle Lite is not in scope"),
        ({"skip_tensor_list": "x"}, "give names of tensors"),
        ({"scale_dict": {}}, "scale_dict is {}"),
        ({"batch_nums": 0}, "batch_nums is 0"),
        ({"model_dir": "/nowhere", "model_filename": "x"}, "model_filename 'x': no such file"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_its_name(residual_onnx, late, words):
    with pytest.raises(ConfigError, match=words):
        PostTrainingQuantization(residual_onnx, data_loader=[], **late)


def test_an_unknown_tensor_gets_the_nearest_name(residual_onnx, images):
    quantizer = PostTrainingQuantization(
        residual_onnx, sample_generator=iter(images), skip_tensor_list=["inputt"]
    )
    with pytest.raises(ConfigError, match="skip_tensors 'inputt' is no activation"):
        quantizer.quantize()


@pytest.mark.parametrize(
    "late", [{"onnx_format": False}, {"optimize_model": False}, {"is_use_cache_file": True}]
)
def test_what_is_done_in_any_case_is_said(residual_onnx, late):
    with pytest.warns(UserWarning, match="changes nothing"):
        PostTrainingQuantization(residual_onnx, data_loader=[], **late)


def test_saving_before_quantizing_is_an_error(residual_onnx, tmp_path):
    with pytest.raises(ConfigError, match="quantize"):
        PostTrainingQuantization(residual_onnx, data_loader=[]).save_quantized_model(tmp_path)


def test_a_file_that_is_not_faithful_keeps_its_name_and_warns(residual_onnx, images, tmp_path, monkeypatch):
    def unfaithful(model, data, output, **options):
        made = output.with_name("model.unfaithful.onnx")
        made.write_bytes(b"file")
        ranges_path(made).write_text("{}")
        return SimpleNamespace(output=str(made))

    monkeypatch.setattr("quantrim.paddle.post_training.ptq", unfaithful)
    quantizer = PostTrainingQuantization(residual_onnx, data_loader=[images])
    quantizer.quantize()
    with pytest.warns(UserWarning, match="not faithful"):
        path = quantizer.save_quantized_model(tmp_path)
    assert path == tmp_path / "model.unfaithful.onnx"
    assert path.read_bytes() == b"file"
