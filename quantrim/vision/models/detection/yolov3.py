"""YOLOv3 on MobileNetV1, as PaddleDetection builds it (configs/yolov3_mobilenet_v1_voc.yml).

Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv 1804.02767; the neck is PaddleDetection's
YOLOv3FPN (ppdet/modeling/necks/yolo_fpn.py), batch norm and LeakyReLU(0.1) behind every convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from quantrim.detection import YoloV3Decoder
from quantrim.vision.models.blocks import init_kaiming
from quantrim.vision.models.detection.body import as_body
from quantrim.vision.models.mobilenet_v1 import MobileNetV1
from quantrim.vision.models.weights import load_pretrained

Anchors = Sequence[Sequence[Sequence[float]]]
#: PaddleDetection's anchors by level, stride 32 first.
ANCHORS = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
_STRIDES = (32, 16, 8)
#: Where MobileNetV1's maps at strides 8, 16 and 32 end: behind separable blocks 5, 11 and 13.
_MOBILENET_STAGES = (6, 12, 14)
#: Objects are rare: heads start as if one candidate in a hundred were one (Lin et al., arXiv 1708.02002).
_PRIOR = 0.01


class MobileNetV1Stages(nn.Module):
    """MobileNetV1 without its classifier: maps at strides 8, 16 and 32.

    Args:
        scale: width multiplier.
        pretrained: a weight file of these stages, or None.
    """

    def __init__(self, scale: float = 1.0, pretrained: str | Path | None = None) -> None:
        super().__init__()
        layers = MobileNetV1(1, scale).features
        bounds = (0, *_MOBILENET_STAGES)
        self.stages = nn.ModuleList(layers[a:b] for a, b in pairwise(bounds))
        self.feat_channels = tuple(_width_of(layers[end - 1]) for end in _MOBILENET_STAGES)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Three maps of images (N, 3, H, W)."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _width_of(block: nn.Module) -> int:
    """Channels that a separable block gives: those of its last batch norm."""
    return [one.num_features for one in block.modules() if isinstance(one, nn.BatchNorm2d)][-1]


_leaky = partial(Conv2dNormActivation, activation_layer=partial(nn.LeakyReLU, 0.1))


class _Level(nn.Module):
    """Five convolutions to the route, one more to the tip."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.route = nn.Sequential(
            _leaky(in_channels, channels, 1),
            _leaky(channels, 2 * channels, 3),
            _leaky(2 * channels, channels, 1),
            _leaky(channels, 2 * channels, 3),
            _leaky(2 * channels, channels, 1),
        )
        self.tip = _leaky(channels, 2 * channels, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route and tip."""
        route = self.route(x)
        return route, self.tip(route)


class YOLOv3(nn.Module):
    """Backbone, neck and three heads.

    Args:
        backbone: gives maps at strides 8, 16, 32, with their channels in ``feat_channels``; or any classifier,
            whose last maps at these strides are taken.
        num_classes: classes, without background.
        anchors: (width, height) in pixels of each anchor by level, stride 32 first.
        neck_scale: width multiplier of the neck; 1 is 512, 256, 128 channels.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 20,
        anchors: Anchors = ANCHORS,
        neck_scale: float = 1.0,
        pretrained: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.backbone = as_body(backbone)
        maps = self.backbone.feat_channels[::-1]  # type: ignore[index]
        widths = [max(8, int(channels * neck_scale)) for channels in (512, 256, 128)]
        routes = [0, *(width // 2 for width in widths[:2])]
        pairs = zip(maps, routes, widths, strict=True)
        self.levels = nn.ModuleList(_Level(have + route, width) for have, route, width in pairs)
        self.transitions = nn.ModuleList(_leaky(width, width // 2, 1) for width in widths[:2])
        init_kaiming(self)
        self.heads = nn.ModuleList(
            _head(2 * width, len(own), num_classes) for width, own in zip(widths, anchors, strict=True)
        )
        self.decoder = YoloV3Decoder(
            num_classes, tuple(tuple((float(w), float(h)) for w, h in own) for own in anchors), _STRIDES
        )
        self.head_outputs = tuple(f"heads.{index}" for index in range(len(self.heads)))
        load_pretrained(self, pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (N, A * (5 + C), h, w) at strides 32, 16, 8."""
        maps = self.backbone(images)[::-1]
        outputs, x = [], maps[0]
        for index, level in enumerate(self.levels):
            route, tip = level(x)
            outputs.append(self.heads[index](tip))
            if index < len(self.transitions):
                wide = F.interpolate(self.transitions[index](route), scale_factor=2.0, mode="nearest")
                x = torch.cat([wide, maps[index + 1]], dim=1)
        return tuple(outputs)


def _head(channels: int, anchors: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution with bias, PaddleDetection's ``yolo_output``."""
    head = nn.Conv2d(channels, anchors * (5 + num_classes), 1)
    nn.init.normal_(head.weight, std=0.01)
    with torch.no_grad():
        assert head.bias is not None
        head.bias.zero_()
        head.bias.view(anchors, -1)[:, 4] = -math.log(1 / _PRIOR - 1)
    return head


def yolov3_mobilenet_v1(
    num_classes: int = 20,
    scale: float = 1.0,
    neck_scale: float | None = None,
    anchors: Anchors = ANCHORS,
    pretrained: str | Path | None = None,
) -> YOLOv3:
    """YOLOv3-MobileNetV1: 20.20 GFLOPs at 608x608 with 20 classes.

    Args:
        num_classes: classes, without background.
        scale: width multiplier of the backbone, and of the neck where ``neck_scale`` is None.
        neck_scale: width multiplier of the neck.
        anchors: see :class:`YOLOv3`.
        pretrained: a weight file of this model, or None.
    """
    width = scale if neck_scale is None else neck_scale
    return YOLOv3(MobileNetV1Stages(scale), num_classes, anchors, width, pretrained)
