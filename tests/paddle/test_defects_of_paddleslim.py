"""Known defects of PaddleSlim's and Paddle's QAT, each with a test that we don't have it.

Others are tested where they belong: the biased start of the moving average (test_quantizers.py), untrained
weights in a PACT export and the lost control over ``quantize()``'s result (test_seed_config.py,
test_export.py), unchanged file size (test_export.py), ignored ``--resume_model`` and "exports the last state"
(test_recipe.py), one-line errors for control flow (test_wrapping.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.errors import ConfigError
from quantrim.paddle import config_from_paddle
from quantrim.qat import QAT, method

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Two readers of one tensor, a functional add and concat, BatchNorm behind each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1)
        self.left_bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        joined = torch.cat([self.left_bn(self.left(x)) + x, F.relu(self.right(x))], 1)
        return self.fc(joined.mean((2, 3)))


def trained(kind: str = "default", steps: int = 2, **changes: object) -> QAT:
    torch.manual_seed(0)
    qat = QAT(Residual(), X, config=method(kind, **changes))
    qat.calibrate([X])
    optimizer = torch.optim.SGD(qat.parameter_groups(0.01), momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        qat.module.train()(X).square().mean().backward()
        optimizer.step()
    qat.module.eval()
    return qat


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[QAT, Path]:
    """The network after two steps of the default method, and its file."""
    qat = trained()
    return qat, qat.export(tmp_path_factory.mktemp("default") / "net.onnx").path


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_a_tensor_that_three_calls_read_has_one_quantizer_and_one_scale_in_the_file(default: tuple[QAT, Path]):
    """ImperativeQuantAware gives each layer an input quantizer of its own, so a tensor gets several scales."""
    qat, path = default
    assert [name for name in qat.quantizers if name == "relu"] == ["relu"]
    graph = onnx.load(path).graph
    sources = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))


def test_functional_ops_are_quantized_like_layers(default: tuple[QAT, Path]):
    """PaddleSlim swaps layers by type, so that ``x + y``, ``paddle.concat`` and ``F.relu`` are never seen."""
    reads = {node for node, _ in default[0].plan.reads}
    assert {"add", "concat"} <= reads
    qat = QAT(_Functional(), X)
    assert list(qat.quantizer_set.weights) == ["weight@0"]


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight))


def test_batch_norm_is_folded_in_the_file_with_the_scales_of_training(default: tuple[QAT, Path]):
    """PaddleSlim 2.0 leaves BatchNorm in the graph; converters fold it and the weight scales are wrong."""
    qat, path = default
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    stem, norm = qat.module.stem.weight, qat.module.bn
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    expected = qat.quantizer_set.weights["stem|weight@0"].scale(stem).reshape(-1) * factor.abs()
    scales = [
        value for value in initializers(path).values() if value.shape == (8,) and value.dtype == np.float32
    ]
    assert any(np.allclose(value, expected.detach().numpy(), rtol=1e-4) for value in scales)


def test_every_scale_of_training_is_in_the_file(default: tuple[QAT, Path]):
    """There scales become attributes (``out_threshold``) that converters lose: Paddle #40573."""
    qat, path = default
    stored = [float(value) for value in initializers(path).values() if value.shape == ()]
    for quantizer in qat.quantizers.values():
        assert any(value == pytest.approx(float(quantizer.qparams()[0]), rel=1e-6) for value in stored)


@pytest.mark.parametrize("kind", ["default", "pact", "lsq"])
def test_simulation_and_engine_give_the_same_answers(kind: str, tmp_path: Path):
    """There the converted model loses 0.7 points against fake quantization: Paddle #40573."""
    qat = trained(kind)
    session = ort.InferenceSession(qat.export(tmp_path / "net.onnx").path)
    got = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    expected = qat.module(X).detach().numpy()
    assert np.array_equal(got.argmax(1), expected.argmax(1))
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()


def test_learned_clips_have_gradients_from_the_first_step_at_the_models_own_rate():
    """PaddleSlim starts at 20, later 100, where nothing is clipped, and multiplies the rate by 1000."""
    qat = trained("pact", steps=0)
    qat.module.train()(X).square().mean().backward()
    clips = [p for name, p in qat.quantizer_set.named_parameters() if name.endswith("top")]
    assert clips
    assert sum(bool(p.grad != 0) for p in clips) > len(clips) // 2
    assert all(p.item() < 10 for p in clips)
    assert {group["lr"] for group in qat.parameter_groups(0.01)} == {0.01}
    assert qat.parameter_groups(0.01)[1]["weight_decay"] > 0, "the paper's L2 term, which the class there lacks"


def test_linear_weights_have_a_scale_for_each_output():
    """Paddle took axis 0 of (in, out) matrices, the inputs: Paddle #25639."""
    qat = trained()
    weight = qat.module.fc.weight
    scale = qat.quantizer_set.weights["fc|weight@0"].scale(weight)
    assert tuple(scale.shape) == (5, 1)
    torch.testing.assert_close(scale, weight.detach().abs().amax(1, keepdim=True) / 127)


def test_a_pattern_a_layers_mark_and_a_type_all_keep_layers_in_float():
    """``not_quant_pattern`` knows op scopes only, and QAT of dynamic graphs ignores it."""
    config = config_from_paddle({"not_quant_pattern": ["left"]}).config
    assert "left|weight@0" not in QAT(Residual(), X, config=config).quantizer_set.weights
    marked = Residual()
    marked.right.skip_quant = True
    assert "right|weight@0" not in QAT(marked, X).quantizer_set.weights
    only = config_from_paddle({"quantizable_layer_type": ["Linear"]}).config
    assert list(QAT(Residual(), X, config=only).quantizer_set.weights) == ["fc|weight@0"]
    with pytest.raises(ConfigError, match="matches no module"):
        QAT(Residual(), X, config=config_from_paddle({"not_quant_pattern": ["hed"]}).config)


def test_channel_wise_scales_of_activations_are_refused():
    """The check there uses the list for weights, and the run fails later."""
    with pytest.raises(ConfigError, match="activation_quantize_type is 'channel_wise_abs_max'"):
        config_from_paddle({"activation_quantize_type": "channel_wise_abs_max"})


@pytest.mark.parametrize("kind", ["abs_max", "range_abs_max"])
def test_every_activation_type_that_the_settings_allow_trains_and_exports(kind: str, tmp_path: Path):
    """``range_abs_max`` passes the check of QAT there and is rejected by the layer below it."""
    torch.manual_seed(0)
    qat = QAT(
        Residual(), X, config=config_from_paddle({"activation_quantize_type": kind, "window_size": 8}).config
    )
    qat.module.train()(X).sum().backward()
    assert qat.export(tmp_path / "net.onnx").agreement.beyond_edge == 0


def test_nothing_is_left_in_the_working_directory_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """``quant_aware`` writes a mapping table there; PaddleSeg leaves PADDLESEG_EXPORT_STAGE set."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    trained("pact").export("net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert dict(os.environ) == before


def test_synchronized_batch_norm_is_traced_folded_and_frozen_like_any_other(tmp_path: Path):
    """Multi-card QAT with ``sync_batch_norm`` crashes there, "reason unknown"."""
    torch.manual_seed(0)
    module = nn.SyncBatchNorm.convert_sync_batchnorm(Residual())
    qat = QAT(module, X, config=method("default", freeze_batch_norm_at=0))
    assert isinstance(module.bn, nn.SyncBatchNorm)
    module.train()(X).sum().backward()  # frozen, so that it needs no process group
    assert not module.bn.training
    path = qat.export(tmp_path / "net.onnx").path
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}


def test_the_batch_size_of_the_file_is_free(default: tuple[QAT, Path]):
    """slim/quant.py exports the shape of one validation picture, batch 1."""
    session = ort.InferenceSession(default[1])
    name = session.get_inputs()[0].name
    assert session.run(None, {name: X[:3].numpy()})[0].shape == (3, 5)


def test_a_weight_read_by_two_layers_is_quantized_once(tmp_path: Path):
    """There each layer wraps the shared parameter in a quantizer of its own."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x)))

    qat = QAT(Tied(), X, config=method("lsq"))
    assert len(qat.quantizer_set.weights) == 1
    assert qat.export(tmp_path / "net.onnx").agreement.beyond_edge == 0
