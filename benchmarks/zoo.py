"""The models that the benchmarks run on, exported once to build/models with seeded random weights.

Random weights don't change latency. Batch-norm statistics are those of random images, so that activations
have sane ranges and calibration works as on a trained model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

from quantrim.graph.from_torch import export_onnx

FOLDER = Path("build/models")


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None)


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name)

    return make


class _MainOutput(nn.Module):
    """A segmentation model of torchvision, reduced to its main output."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=21
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)["out"]


class _SsdBody(nn.Module):
    """Backbone and heads of SSDLite-320 without anchors and suppression, which run outside the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=21
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = list(self.model.backbone(x).values())
        heads = self.model.head(features)
        return heads["bbox_regression"], heads["cls_logits"]


def _yolox() -> nn.Module:
    from quantrim.vision.models import MODELS

    return MODELS["YOLOXNano"](num_classes=80)


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v1": _timm("mobilenetv1_100"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "resnet50": _torchvision("resnet50"),
    "resnet101": _torchvision("resnet101"),
    "vgg16": _torchvision("vgg16"),
    "vgg19": _torchvision("vgg19"),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large"),
    "resnext50": _torchvision("resnext50_32x4d"),
    "shufflenet_v2": _torchvision("shufflenet_v2_x1_0"),
    "densenet121": _torchvision("densenet121"),
    "regnet_x_400mf": _torchvision("regnet_x_400mf"),
    "convnext_tiny": _torchvision("convnext_tiny"),
    "vit_b_16": _torchvision("vit_b_16"),
    "swin_t": _torchvision("swin_t"),
    "mobilenetv4_conv_small": _timm("mobilenetv4_conv_small"),
    "mobileone_s0": _timm("mobileone_s0"),
    "mobilevit_s": _timm("mobilevit_s"),
    "deeplabv3_resnet50": _MainOutput,
}
#: Bodies of detectors; what selects boxes runs outside the engine.
DETECTORS: dict[str, Callable[[], nn.Module]] = {"ssdlite320": _SsdBody, "yolox_nano": _yolox}
SIZES = {"deeplabv3_resnet50": 256, "ssdlite320": 320, "yolox_nano": 416, "mobilevit_s": 256}


def model_file(name: str) -> Path:
    """ONNX file of a model, exported on the first call."""
    path = FOLDER / f"{name}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        module = (CLASSIFIERS | OTHERS | DETECTORS)[name]()
        size = SIZES.get(name, 224)
        images = torch.randn(4, 3, size, size)
        settle_batch_norm(module, images)
        export_onnx(module, images[:1], path, dynamic_batch=name not in SIZES, input_names=["image"])
    return path


def settle_batch_norm(module: nn.Module, images: torch.Tensor) -> None:
    """Give every batch norm the statistics of the images, and scale and shift of their own."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.2)
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    with torch.no_grad():
        module(images)
    module.eval()
