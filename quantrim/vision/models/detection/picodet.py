"""PicoDet: LCNet, a light path aggregation neck, heads whose boxes are distributions.

Yu et al., "PP-PicoDet", arXiv 2111.00902; Cui et al., "PP-LCNet", arXiv 2109.15099; layer by layer as
PaddleDetection's release of 2022 has it (configs/picodet/picodet_s_416_coco_lcnet.yml: LCNet, LCPAN,
PicoHeadV2), so that sizes can be compared.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import _make_divisible
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from quantrim.detection import DflDecoder
from quantrim.vision.models.weights import load_pretrained

_PRIOR = 0.01
_BINS = 7
_STRIDES = (8, 16, 32, 64)
#: Kernel, channels out at scale 1, stride, squeeze-and-excitation of each separable block of LCNet; a map is
#: taken before the second and the third stage and at the end.
_LCNET = (
    ((3, 32, 1, False), (3, 64, 2, False), (3, 64, 1, False), (3, 128, 2, False), (3, 128, 1, False)),
    ((3, 256, 2, False), *((5, 256, 1, False),) * 5),
    ((5, 512, 2, True), (5, 512, 1, True)),
)
_conv = partial(Conv2dNormActivation, activation_layer=nn.Hardswish)
#: As a probability of 1 has no logit.
_LARGEST_LOG = -1e-6


def _separable(
    in_channels: int, out_channels: int, kernel_size: int = 5, stride: int = 1, excited: bool = False
) -> nn.Sequential:
    """Depthwise and pointwise convolution, each with batch norm and hard swish."""
    layers = [_conv(in_channels, in_channels, kernel_size, stride, groups=in_channels)]
    if excited:
        own = partial(nn.Hardsigmoid, inplace=False)
        layers.append(SqueezeExcitation(in_channels, in_channels // 4, scale_activation=own))
    return nn.Sequential(*layers, _conv(in_channels, out_channels, 1))


class LCNet(nn.Module):
    """Backbone with maps at strides 8, 16 and 32.

    Args:
        scale: width multiplier.
        pretrained: a weight file of this backbone, or None.
    """

    def __init__(self, scale: float = 1.0, pretrained: str | Path | None = None) -> None:
        super().__init__()
        channels = _make_divisible(16 * scale, 8)
        self.stem = _conv(3, channels, 3, 2)
        self.stages, self.feat_channels = nn.ModuleList(), []
        for stage in _LCNET:
            blocks = []
            for kernel_size, wide, stride, excited in stage:
                out = _make_divisible(wide * scale, 8)
                blocks.append(_separable(channels, out, kernel_size, stride, excited))
                channels = out
            self.stages.append(nn.Sequential(*blocks))
            self.feat_channels.append(channels)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Three maps of images (N, 3, H, W)."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _LCPAN(nn.Module):
    """Maps of equal width, top-down and bottom-up again, and a fourth one at twice the last stride."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_conv(each, channels, 1) for each in in_channels)
        self.down_blocks, self.up_blocks = (nn.ModuleList(_pair(channels) for _ in range(2)) for _ in range(2))
        self.steps = nn.ModuleList(_separable(channels, channels, stride=2) for _ in range(2))
        self.tops = nn.ModuleList(_separable(channels, channels, stride=2) for _ in range(2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps."""
        low, middle, high = (lateral(one) for lateral, one in zip(self.laterals, maps, strict=True))
        second = self.down_blocks[0](torch.cat([_twice(high), middle], dim=1))
        first = self.down_blocks[1](torch.cat([_twice(second), low], dim=1))
        medium = self.up_blocks[0](torch.cat([self.steps[0](first), second], dim=1))
        large = self.up_blocks[1](torch.cat([self.steps[1](medium), high], dim=1))
        return [first, medium, large, self.tops[0](high) + self.tops[1](large)]


def _pair(channels: int) -> nn.Sequential:
    return nn.Sequential(_separable(2 * channels, 2 * channels), _separable(2 * channels, channels))


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class _Head(nn.Module):
    """Head of one level: class logits aligned by a map of their own, and distributions of the sides.

    The score is the geometric mean of a class's probability and of the alignment's; what is told is its logit,
    so that one sigmoid makes scores of the maps as of any detector's.
    """

    def __init__(self, channels: int, convs: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_separable(channels, channels) for _ in range(convs)))
        self.gate = nn.Conv2d(channels, channels, 1)
        self.excited = _conv(channels, channels, 1)
        self.align = nn.Sequential(_conv(channels, 1, 5), Conv2dNormActivation(1, 1, 1, activation_layer=None))
        self.cls_pred = nn.Conv2d(channels, num_classes, 1)
        self.reg_pred = nn.Conv2d(channels, 4 * (_BINS + 1), 1)
        nn.init.normal_(self.gate.weight, std=0.001)
        for pred in (self.cls_pred, self.reg_pred):
            nn.init.normal_(pred.weight, std=0.01)
        assert self.cls_pred.bias is not None
        nn.init.constant_(self.cls_pred.bias, -math.log(1 / _PRIOR - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, C, h, w) and (N, 4 * (bins + 1), h, w)."""
        x = self.convs(x)
        excited = self.excited(x * self.gate(F.adaptive_avg_pool2d(x, 1)).sigmoid())
        logs = F.logsigmoid(self.cls_pred(excited)) + F.logsigmoid(self.align(x))
        mean = (0.5 * logs).clamp(max=_LARGEST_LOG)
        return mean - torch.log(1 - mean.exp()), self.reg_pred(excited)


class PicoDet(nn.Module):
    """Backbone, neck and four heads.

    Args:
        num_classes: classes, without background.
        scale: width multiplier of LCNet.
        channels: of the neck and the heads.
        convs: separable convolutions of a head.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int = 80,
        scale: float = 0.75,
        channels: int = 96,
        convs: int = 2,
        pretrained: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.backbone = LCNet(scale)
        self.neck = _LCPAN(self.backbone.feat_channels, channels)
        self.heads = nn.ModuleList(_Head(channels, convs, num_classes) for _ in _STRIDES)
        self.decoder = DflDecoder(num_classes, _BINS, _STRIDES)
        self.head_outputs = tuple(
            f"heads.{level}.{name}" for level in range(4) for name in ("cls_pred", "align.1.0", "reg_pred")
        )
        load_pretrained(self, pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Class logits of strides 8 to 64, then distributions of the sides."""
        pairs = [head(x) for head, x in zip(self.heads, self.neck(self.backbone(images)), strict=True)]
        return (*(classes for classes, _ in pairs), *(sides for _, sides in pairs))


def picodet_s(num_classes: int = 80, pretrained: str | Path | None = None) -> PicoDet:
    """PicoDet-S of 2022: 1.18 M parameters, 0.97 GFLOPs at 320x320 and 1.65 at 416x416."""
    return PicoDet(num_classes, 0.75, 96, 2, pretrained)
