"""torchvision's classifiers with quantrim's ``num_classes`` and ``pretrained``."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from quantrim.checkpoints import load_state
from quantrim.errors import ModelError
from quantrim.vision.models.weights import load_pretrained


def mobilenet_v2(num_classes: int = 1000, pretrained: str | Path | None = None, **arguments: Any) -> nn.Module:
    """MobileNetV2 (Sandler et al., arXiv 1801.04381).

    Args:
        num_classes: classes that the logits tell apart.
        pretrained: None, a weight file, or "imagenet" for torchvision's weights; a classifier of other classes
            than the file's keeps its fresh values, with a warning.
        **arguments: what torchvision's function takes besides.

    Returns:
        Module from images (N, 3, H, W) to logits (N, num_classes).

    Raises:
        ModelError: "imagenet" without network.
        CheckpointError: the file is unreadable or of another model.
    """
    return _build(torchvision.models.mobilenet_v2, num_classes, pretrained, **arguments)


def mobilenet_v3_small(
    num_classes: int = 1000, pretrained: str | Path | None = None, **arguments: Any
) -> nn.Module:
    """MobileNetV3-Small (Howard et al., arXiv 1905.02244); arguments as for :func:`mobilenet_v2`."""
    return _build(torchvision.models.mobilenet_v3_small, num_classes, pretrained, **arguments)


def mobilenet_v3_large(
    num_classes: int = 1000, pretrained: str | Path | None = None, **arguments: Any
) -> nn.Module:
    """MobileNetV3-Large (Howard et al., arXiv 1905.02244); arguments as for :func:`mobilenet_v2`."""
    return _build(torchvision.models.mobilenet_v3_large, num_classes, pretrained, **arguments)


def resnet18(num_classes: int = 1000, pretrained: str | Path | None = None, **arguments: Any) -> nn.Module:
    """ResNet-18 (He et al., arXiv 1512.03385); arguments as for :func:`mobilenet_v2`."""
    return _build(torchvision.models.resnet18, num_classes, pretrained, **arguments)


def resnet50(num_classes: int = 1000, pretrained: str | Path | None = None, **arguments: Any) -> nn.Module:
    """ResNet-50 (He et al., arXiv 1512.03385); arguments as for :func:`mobilenet_v2`."""
    return _build(torchvision.models.resnet50, num_classes, pretrained, **arguments)


def resnet101(num_classes: int = 1000, pretrained: str | Path | None = None, **arguments: Any) -> nn.Module:
    """ResNet-101 (He et al., arXiv 1512.03385); arguments as for :func:`mobilenet_v2`."""
    return _build(torchvision.models.resnet101, num_classes, pretrained, **arguments)


def vgg16(
    num_classes: int = 1000, pretrained: str | Path | None = None, batch_norm: bool = False, **arguments: Any
) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman, arXiv 1409.1556), with batch norm on request.

    Other arguments as for :func:`mobilenet_v2`.
    """
    build = torchvision.models.vgg16_bn if batch_norm else torchvision.models.vgg16
    return _build(build, num_classes, pretrained, **arguments)


def vgg19(
    num_classes: int = 1000, pretrained: str | Path | None = None, batch_norm: bool = False, **arguments: Any
) -> nn.Module:
    """VGG-19 (Simonyan and Zisserman, arXiv 1409.1556), with batch norm on request.

    Other arguments as for :func:`mobilenet_v2`.
    """
    build = torchvision.models.vgg19_bn if batch_norm else torchvision.models.vgg19
    return _build(build, num_classes, pretrained, **arguments)


def _build(
    build: Callable[..., nn.Module], num_classes: int, pretrained: str | Path | None, **arguments: Any
) -> nn.Module:
    model = build(weights=None, num_classes=num_classes, **arguments)
    if pretrained == "imagenet":
        _load_imagenet(model, torchvision.models.get_model_weights(build).DEFAULT)
    else:
        load_pretrained(model, pretrained)
    return model


def _load_imagenet(model: nn.Module, weights: Any) -> None:
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"pretrained: torchvision's {weights} can't be downloaded ({error}). Fetch {weights.url} where "
            "there is network and give the local path as pretrained."
        ) from error
    load_state(model, state, weights.url, strict=False)
