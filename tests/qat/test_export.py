"""The exported file makes the codes that were trained, for every kind of layer and on several targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.errors import ConfigError, ModelError
from quantrim.graph import graph_from_onnx, normalize, random_feed, read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.placement import place
from quantrim.qat import QAT, QATConfig, method
from quantrim.qat.export.agreement import edge_of
from quantrim.targets import target_named

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **arguments: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **arguments)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class NoBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2), nn.Linear(8 * 14 * 14, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.relu(self.b(F.leaky_relu(self.a(x)))), 1))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv_bn(3, 16), conv_bn(16, 16, groups=4)
        self.depthwise, self.point = conv_bn(16, 32, groups=16), conv_bn(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = F.relu6(self.grouped(x)) + x
        return self.point(F.relu6(self.depthwise(x))).mean((2, 3))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = conv_bn(3, 8, stride=2)
        self.up, self.bn = nn.ConvTranspose2d(8, 6, 2, 2, bias=False), nn.BatchNorm2d(6)
        self.grouped, self.gbn = nn.ConvTranspose2d(6, 6, 2, 2, groups=3), nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.up(F.relu(self.down(x)))))
        return self.head(F.relu(self.gbn(self.grouped(x))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = conv_bn(3, 16, stride=2), conv_bn(16, 8)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return self.out(x * F.hardsigmoid(gate))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norm, self.mix = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y = self.norm(x)
        x = x + self.mix(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x))[:, 0])


class PreActivation(nn.Module):
    """DenseNet's order: a BatchNorm behind a concat, which no convolution takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.bn2 = nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)
        return self.out(F.max_pool2d(F.relu(self.bn2(x)), 2))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.out = conv_bn(3, 16, stride=2), conv_bn(8, 8), conv_bn(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.interpolate(F.relu(self.out(x)), scale_factor=2.0, mode="bilinear")
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 2)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, bias=False), nn.Conv2d(8, 4, 3)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(F.pad(x, (0, 1, 0, 1)))))
        return self.b(F.pad(x, (1, 1, 1, 1)))


class Vector(nn.Module):
    """Linear layers with BatchNorm, a weight as bare parameter, and negative and zero gammas."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Linear(3 * 32 * 32, 16), nn.BatchNorm1d(16)
        self.matrix = nn.Parameter(torch.randn(16, 8))
        with torch.no_grad():
            self.bn.weight[:4] *= -1
            self.bn.weight[4] = 0

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.a(x.flatten(1)))) @ self.matrix


NETS: dict[str, Callable[[], nn.Module]] = {
    "no_batch_norm": NoBatchNorm,
    "grouped": Grouped,
    "transposed": Transposed,
    "squeeze_excite": SqueezeExcite,
    "attention": Attention,
    "pre_activation": PreActivation,
    "shuffled": Shuffled,
    "padded": Padded,
    "vector": Vector,
}
TORCHVISION = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5",
    "densenet121", "efficientnet_b0", "squeezenet1_0", "vgg11_bn", "googlenet", "regnet_y_400mf",
    "mnasnet0_5", "convnext_tiny", "swin_t",
)  # fmt: skip


def shaken(module: nn.Module, signs: bool = False) -> nn.Module:
    """The module in eval mode with BatchNorms that do something, some gammas negative."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            with torch.no_grad():
                layer.weight.mul_(torch.empty_like(layer.weight).uniform_(0.5, 1.5, generator=generator))
                if signs:
                    layer.weight[::3] *= -1
    return module.eval()


@pytest.mark.parametrize("target", ["portable", "openvino", "tensorrt"])
@pytest.mark.parametrize("name", NETS)
def test_file_and_module_make_the_same_codes(name: str, target: str, tmp_path: Path):
    if target != "portable" and name not in ("transposed", "grouped", "attention", "shuffled"):
        pytest.skip("one target tells enough of this net")
    torch.manual_seed(0)
    module = shaken(NETS[name](), signs=True)
    qat = QAT(module, IMAGE, target=target)
    result = qat.export(tmp_path / "net.onnx")
    assert result.agreement.beyond_edge == 0
    # a float bias, as TensorRT wants it, ONNX Runtime rounds by itself
    assert result.agreement.share > (0.9995 if target == "tensorrt" else 0.9999)
    assert result.agreement.output_difference < 1e-4
    got = run(result.path, IMAGE.numpy())
    with torch.no_grad():
        expected = module(IMAGE).numpy()
    assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_file_and_module_make_the_same_codes(name: str, tmp_path: Path):
    torch.manual_seed(0)
    arguments = {"init_weights": True} if name == "googlenet" else {}
    module = shaken(getattr(torchvision.models, name)(weights=None, num_classes=10, **arguments))
    size = 64 if name != "swin_t" else 32
    result = QAT(module, torch.randn(2, 3, size, size)).export(tmp_path / "net.onnx")
    assert result.agreement.beyond_edge == 0
    assert result.agreement.share > 0.9999
    assert result.agreement.output_difference < 1e-4


def test_a_small_mobilenet_keeps_dynamic_batch_and_names(tmp_path: Path):
    module = shaken(torchvision.models.mobilenet_v2(weights=None, num_classes=10, width_mult=0.25))
    result = QAT(module, IMAGE).export(tmp_path / "net.onnx", input_names=["image"], output_names=["logits"])
    session = ort.InferenceSession(result.path)
    assert [port.name for port in (*session.get_inputs(), *session.get_outputs())] == ["image", "logits"]
    assert session.run(None, {"image": IMAGE[:1].repeat(5, 1, 1, 1).numpy()})[0].shape == (5, 10)
    assert result.agreement.beyond_edge == 0


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
@pytest.mark.parametrize("target", ["portable", "openvino"])
@pytest.mark.slow
def test_placement_is_the_one_of_post_training_quantization(name: str, target: str, tmp_path: Path):
    module = shaken(getattr(torchvision.models, name)(weights=None, num_classes=10))
    x = torch.randn(1, 3, 64, 64)
    export_onnx(module, x, tmp_path / "float.onnx", parity=False)
    model = normalize(read_onnx(tmp_path / "float.onnx"))
    expected = place(graph_from_onnx(model, random_feed(model)), target_named(target))
    plan = QAT(module, x, target=target).plan
    assert len(plan.weights) == len(expected.weights)
    assert len(plan.groups) == len(expected.groups)
    assert len(set(plan.groups.values())) == len(set(expected.groups.values()))
    assert len(plan.reads) == len(expected.reads)


def test_int8_weights_are_the_trained_codes_with_the_sign_of_gamma(tmp_path: Path):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).eval()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([2.0, -1.0, 0.5, 0.0]))
    qat = QAT(module, IMAGE)
    trained = qat.quantizer_set.weights["0|weight@0"]
    codes = torch.round(module[0].weight / trained.scale(module[0].weight)).detach().numpy()
    qat.export(tmp_path / "net.onnx")
    stored = [
        numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "net.onnx").graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and t.dims == [4, 3, 3, 3]
    ]
    signs = np.array([1, -1, 1, 0]).reshape(4, 1, 1, 1)
    assert np.array_equal(stored[0], codes * signs)


def test_the_file_is_a_quarter_of_the_float_one(tmp_path: Path):
    module = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU(), nn.Conv2d(256, 8, 1)
    )
    float_mb = sum(p.numel() for p in module.parameters()) * 4e-6
    assert QAT(module, IMAGE).export(tmp_path / "net.onnx").size_mb < 0.3 * float_mb


@pytest.mark.parametrize("name", ["pact", "lsq"])
def test_learned_quantizers_export_their_trained_values(name: str, tmp_path: Path):
    """PaddleSlim 2.0 exported untrained weights with PACT (PaddleSlim #680, #728)."""
    torch.manual_seed(0)
    module = Grouped()
    qat = QAT(module, IMAGE, config=method(name))
    qat.calibrate([IMAGE])
    optimizer = torch.optim.SGD(qat.parameter_groups(0.01), momentum=0.9)
    goal = torch.randn(2, 16)
    for _ in range(5):
        optimizer.zero_grad()
        (module.train()(IMAGE) - goal).square().mean().backward()
        optimizer.step()
    result = qat.export(tmp_path / "net.onnx")
    assert result.agreement.beyond_edge == 0
    with torch.no_grad():
        expected = module.eval()(IMAGE).numpy()
    assert np.linalg.norm(run(result.path, IMAGE.numpy()) - expected) < 0.02 * np.linalg.norm(expected)
    names = [node.op_type for node in onnx.load(result.path).graph.node]
    assert "Mark" not in names
    assert names.count("Clip") <= 3, "the learned clip is in the scale, not in the graph"


def test_tracked_and_per_tensor_weights_export(tmp_path: Path):
    for config in (
        QATConfig(weight="moving_average", weight_per_channel=False),
        QATConfig(weight="range_abs_max", weight_per_channel=False, window_size=4),
        QATConfig(weight_bits=4),
    ):
        torch.manual_seed(0)
        module = shaken(Grouped())
        qat = QAT(module, IMAGE, config=config)
        module.train()(IMAGE)
        assert qat.export(tmp_path / "net.onnx").agreement.beyond_edge == 0


def test_narrow_activations_are_simulation_only(tmp_path: Path):
    qat = QAT(Grouped(), IMAGE, config=QATConfig(activation_bits=4))
    assert qat.module.eval()(IMAGE).shape == (2, 16)
    with pytest.raises(ConfigError, match="simulation only"):
        qat.export(tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


class Halving(nn.Module):
    """A user's quantizer: powers of two."""

    def __init__(self, exported: bool = True) -> None:
        super().__init__()
        self.register_buffer("peak", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.peak.copy_(x.detach().abs().amax())
        scale, zero_point = self.qparams()
        y = (torch.clamp(torch.round(x / scale) + zero_point, 0, 255) - zero_point) * scale
        return x + (y - x).detach()

    def qparams(self) -> tuple[Tensor, Tensor]:
        return torch.exp2(torch.ceil(torch.log2(self.peak / 127))), torch.tensor(128.0)


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8


def test_user_defined_quantizers_and_preprocess_modules_train_and_export(tmp_path: Path):
    torch.manual_seed(0)
    config = QATConfig(
        activation_quantizer=Halving, weight_preprocess=Doubling, activation_preprocess=nn.Identity()
    )
    qat = QAT(shaken(NoBatchNorm()), IMAGE, config=config)
    qat.module.train()(IMAGE)
    doubled = qat.module.eval()(IMAGE)
    assert qat.export(tmp_path / "net.onnx").agreement.codes > 0
    assert not torch.allclose(doubled, qat.remove()(IMAGE), rtol=0.1)


def test_an_opaque_quantizer_says_what_it_lacks(tmp_path: Path):
    qat = QAT(NoBatchNorm(), IMAGE, config=QATConfig(weight_quantizer=Opaque))
    qat.module(IMAGE).sum().backward()
    with pytest.raises(ModelError, match=r"Opaque has no method scale\(weight\)"):
        qat.export(tmp_path / "net.onnx")


def test_a_wrong_file_would_be_noticed(tmp_path: Path):
    torch.manual_seed(0)
    qat = QAT(shaken(Grouped()), IMAGE)
    quantizer = qat.quantizers["input"]
    original = quantizer.qparams
    calls = iter([original()[0] * 1.3])
    quantizer.qparams = lambda: (next(calls, original()[0]), original()[1])
    with pytest.raises(ModelError, match=r"codes differ from the trained module.*'input'"):
        qat.export(tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_the_edge_between_codes_widens_with_what_a_tensor_reaches():
    assert edge_of(torch.tensor([-3.0, 255.0])) == pytest.approx(0.01, rel=0.01)
    # seen behind a depthwise layer after four steps of training: 37.515 in the module, 37.49 in the file
    assert 0.015 < edge_of(torch.tensor([37.515, 2.3e6])) < 0.2
    assert edge_of(torch.tensor([1e30])) == 0.25
    assert edge_of(torch.zeros(0)) == 0.01
