"""Whole networks, trained for a step, exported, and compared code by code on ONNX Runtime.

Every case prints the share of equal integer codes (``pytest -s`` shows it). A code may differ only at a tie.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from quantrim.qat import QAT, ExportResult, QATConfig, method
from quantrim.vision.models import (
    FCN,
    BiSeNetV2,
    DeepLabV3P,
    FastSCNN,
    GCNet,
    HarDNet,
    MobileNetV1,
    PSPNet,
    ResNetVd,
    UNet,
    hrnet_w18,
)

#: Smallest share of equal codes; what is missing are ties, each of which the export has checked. Bilinear
#: resizing by a power of two makes true ties: means of neighbouring codes.
EQUAL = 0.999


def trained(module: nn.Module, x: Tensor, config: QATConfig | None = None, steps: int = 1) -> QAT:
    """The module after calibration and a few training steps on noise."""
    qat = QAT(module, x, config=config)
    qat.calibrate([x])
    optimizer = torch.optim.SGD(qat.parameter_groups(0.01), momentum=0.9)
    qat.module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        outputs, _ = torch.utils._pytree.tree_flatten(qat.module(x))
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        nn.utils.clip_grad_norm_(qat.module.parameters(), 1.0)  # some untrained networks explode
        optimizer.step()
    qat.module.eval()
    return qat


def assert_equal_codes(name: str, qat: QAT, x: Tensor, path: Path) -> ExportResult:
    result = qat.export(path)
    agreement = result.agreement
    print(f"{name}: {agreement.share:.4%} of {agreement.codes} codes equal, rest at ties")
    assert agreement.beyond_edge == 0
    assert agreement.share > EQUAL
    assert agreement.output_difference < 1e-4
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in kinds
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected, _ = torch.utils._pytree.tree_flatten(qat.module(x))
    assert [got.shape for got in outputs] == [tuple(want.shape) for want in expected]
    assert all(np.isfinite(got).all() for got in outputs)
    return result


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )


QUICK: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v1": (lambda: MobileNetV1(10, 0.25, small_input=True), 32),
    "torchvision vit": (vit, 32),
}
SLOW: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "bisenetv2": (lambda: BiSeNetV2(3), 64),
    "fast_scnn": (lambda: FastSCNN(3), 64),
    "unet": (lambda: UNet(3), 32),
    "hardnet": (lambda: HarDNet(3), 64),
    "fcn hrnet_w18": (lambda: FCN(3, hrnet_w18()), 64),
    "deeplabv3p": (lambda: DeepLabV3P(3, ResNetVd(50)), 64),
    "gcnet": (lambda: GCNet(3, ResNetVd(50)), 64),
    "pspnet": (lambda: PSPNet(3, ResNetVd(50)), 64),
    "timm deit_tiny": (lambda: timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=10), 32),
    "timm mobilenetv4": (lambda: timm.create_model("mobilenetv4_conv_small", num_classes=10), 64),
    "timm repvgg": (lambda: timm.create_model("repvgg_a0", num_classes=10), 32),
    "timm resnest": (lambda: timm.create_model("resnest14d", num_classes=10), 64),
    "timm ghostnet": (lambda: timm.create_model("ghostnet_050", num_classes=10), 64),
}


@pytest.mark.parametrize("name", QUICK)
def test_a_trained_network_and_its_file_make_the_same_codes(name: str, tmp_path: Path):
    build, size = QUICK[name]
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    assert_equal_codes(name, trained(build(), x), x, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_trained_large_network_and_its_file_make_the_same_codes(name: str, tmp_path: Path):
    build, size = SLOW[name]
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    assert_equal_codes(name, trained(build(), x), x, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pact", "lsq"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_learned_quantizers_of_torchvision_networks_are_exact_in_the_file(name: str, kind: str, tmp_path: Path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64)
    module = torchvision.models.get_model(name, weights=None, num_classes=10)
    assert_equal_codes(f"{name} {kind}", trained(module, x, method(kind), steps=3), x, tmp_path / "net.onnx")


def test_auxiliary_heads_of_bisenetv2_train_and_are_not_in_the_file(tmp_path: Path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    qat = trained(BiSeNetV2(2), x)
    heads = len(qat.module.train()(x))
    assert heads == 5
    qat.module.eval()
    assert_equal_codes("bisenetv2", qat, x, tmp_path / "net.onnx")
    assert len(onnx.load(tmp_path / "net.onnx").graph.output) == 1
