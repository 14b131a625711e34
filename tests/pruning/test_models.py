"""Real models: pruned, checked, reloaded into a fresh model, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from torch import nn

from quantrim.graph.from_torch import export_onnx
from quantrim.pruning import load_pruned, prune, save_pruned
from quantrim.vision import models as own

MODELS: dict[str, Callable[[], nn.Module]] = {
    "bisenetv2": lambda: own.BiSeNetV2(4),
    "fcn_hrnet_w18": lambda: own.FCN(4, own.hrnet_w18()),
    "fast_scnn": lambda: own.FastSCNN(4),
    "hardnet": lambda: own.HarDNet(4),
    "unet": lambda: own.UNet(4),
    "deeplabv3p": lambda: own.DeepLabV3P(4, own.resnet50_vd()),
    "mobilenet_v1": lambda: own.MobileNetV1(num_classes=10),
    "mobilenet_v2": lambda: own.mobilenet_v2(num_classes=10),
    "mobilenet_v3_small": lambda: own.mobilenet_v3_small(num_classes=10),
    "mobilenet_v3_large": lambda: own.mobilenet_v3_large(num_classes=10),
    "resnet50": lambda: own.resnet50(num_classes=10),
    "vgg16": lambda: own.vgg16(num_classes=10, batch_norm=True),
    "shufflenet_v2": lambda: tv.shufflenet_v2_x1_0(num_classes=10),
    "densenet121": lambda: tv.densenet121(num_classes=10),
}
QUICK = ("bisenetv2", "mobilenet_v3_small", "shufflenet_v2")


def assert_whole_way(name: str, ratio: float, folder: Path) -> None:
    torch.manual_seed(0)
    build, x = MODELS[name], torch.randn(1, 3, 64, 64)
    module = build().eval()
    result = prune(module, x, ratio=ratio)
    assert ratio <= result.achieved < ratio + 0.1
    assert all("output of the model" in frozen.reason for frozen in result.frozen), result.frozen
    save_pruned(module, result.plan, folder)
    again = load_pruned(build(), folder).eval()
    with torch.no_grad():
        expected, got = (torch.utils._pytree.tree_leaves(one(x))[0] for one in (module, again))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    export_onnx(again, x, folder / "model.onnx")


@pytest.mark.parametrize("name", QUICK)
def test_pruned_model_goes_the_whole_way(name: str, tmp_path: Path):
    assert_whole_way(name, 0.3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_goes_the_whole_way(name: str, ratio: float, tmp_path: Path):
    assert_whole_way(name, ratio, tmp_path)
