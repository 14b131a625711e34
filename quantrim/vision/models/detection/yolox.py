"""YOLOX: CSPDarknet, PAFPN and decoupled heads without anchors.

Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv 2107.08430; layer by layer as in the authors' code
(Megvii-BaseDetection/YOLOX, Apache-2.0), so that sizes can be compared.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from quantrim.detection import YoloXDecoder
from quantrim.vision.models.weights import load_pretrained

_PRIOR = 0.01
_conv = partial(
    Conv2dNormActivation,
    norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03),
    activation_layer=nn.SiLU,
)


def _spatial(in_channels: int, out_channels: int, kernel_size: int, stride: int, depthwise: bool) -> nn.Module:
    """A convolution, or a depthwise one and a pointwise one."""
    if not depthwise:
        return _conv(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(
        _conv(in_channels, in_channels, kernel_size, stride, groups=in_channels),
        _conv(in_channels, out_channels, 1),
    )


class _Focus(nn.Module):
    """Every second pixel of rows and columns, the four images stacked, then a convolution."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = _conv(12, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Half the height and width."""
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(parts, dim=1))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 1)
        self.conv2 = _spatial(channels, channels, 3, 1, depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class _CSP(nn.Module):
    """Cross-stage partial block of ``count`` bottlenecks."""

    def __init__(
        self, in_channels: int, out_channels: int, count: int, *, shortcut: bool = True, depthwise: bool = False
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv1, self.conv2 = _conv(in_channels, hidden, 1), _conv(in_channels, hidden, 1)
        self.conv3 = _conv(2 * hidden, out_channels, 1)
        self.blocks = nn.Sequential(*(_Bottleneck(hidden, shortcut, depthwise) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """Map with ``out_channels``."""
        return self.conv3(torch.cat([self.blocks(self.conv1(x)), self.conv2(x)], dim=1))


class _SPP(nn.Module):
    """Spatial pyramid pooling: maxima over 5, 9 and 13 pixels beside the map itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels // 2, 1)
        self.conv2 = _conv(channels // 2 * 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        x = self.conv1(x)
        pooled = [F.max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13)]
        return self.conv2(torch.cat([x, *pooled], dim=1))


class CSPDarknet(nn.Module):
    """Backbone with maps at strides 8, 16 and 32.

    Args:
        depth: multiplier of the numbers of bottlenecks.
        width: multiplier of the channels.
        depthwise: 3x3 convolutions outside the stem are depthwise and pointwise.
    """

    def __init__(self, depth: float, width: float, depthwise: bool = False) -> None:
        super().__init__()
        base, count = int(64 * width), max(round(3 * depth), 1)
        self.feat_channels = (4 * base, 8 * base, 16 * base)
        self.stem = _Focus(base)
        self.dark2 = nn.Sequential(
            _spatial(base, 2 * base, 3, 2, depthwise), _CSP(2 * base, 2 * base, count, depthwise=depthwise)
        )
        self.dark3 = nn.Sequential(
            _spatial(2 * base, 4 * base, 3, 2, depthwise),
            _CSP(4 * base, 4 * base, 3 * count, depthwise=depthwise),
        )
        self.dark4 = nn.Sequential(
            _spatial(4 * base, 8 * base, 3, 2, depthwise),
            _CSP(8 * base, 8 * base, 3 * count, depthwise=depthwise),
        )
        self.dark5 = nn.Sequential(
            _spatial(8 * base, 16 * base, 3, 2, depthwise),
            _SPP(16 * base),
            _CSP(16 * base, 16 * base, count, shortcut=False, depthwise=depthwise),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Three maps of images (N, 3, H, W)."""
        x = self.dark2(self.stem(x))
        maps = []
        for stage in (self.dark3, self.dark4, self.dark5):
            x = stage(x)
            maps.append(x)
        return maps


class _PAFPN(nn.Module):
    """Maps top-down and bottom-up again (Liu et al., "Path Aggregation Network", arXiv 1803.01534)."""

    def __init__(self, channels: tuple[int, int, int], depth: float, depthwise: bool) -> None:
        super().__init__()
        low, middle, high = channels
        block = partial(_CSP, count=round(3 * depth), shortcut=False, depthwise=depthwise)
        self.lateral = _conv(high, middle, 1)
        self.down_middle = block(2 * middle, middle)
        self.reduce = _conv(middle, low, 1)
        self.down_low = block(2 * low, low)
        self.up_low = _spatial(low, low, 3, 2, depthwise)
        self.up_middle = block(2 * low, middle)
        self.up_mid = _spatial(middle, middle, 3, 2, depthwise)
        self.up_high = block(2 * middle, high)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Three maps of the same shapes."""
        low, middle, high = maps
        first = self.lateral(high)
        second = self.reduce(self.down_middle(torch.cat([_twice(first), middle], dim=1)))
        small = self.down_low(torch.cat([_twice(second), low], dim=1))
        medium = self.up_middle(torch.cat([self.up_low(small), second], dim=1))
        return small, medium, self.up_high(torch.cat([self.up_mid(medium), first], dim=1))


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class _Head(nn.Module):
    """Decoupled head of one level: offsets, objectness, classes."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, depthwise: bool) -> None:
        super().__init__()
        self.stem = _conv(in_channels, channels, 1)
        self.cls_convs, self.reg_convs = (
            nn.Sequential(*(_spatial(channels, channels, 3, 1, depthwise) for _ in range(2))) for _ in range(2)
        )
        self.cls_pred = nn.Conv2d(channels, num_classes, 1)
        self.reg_pred = nn.Conv2d(channels, 4, 1)
        self.obj_pred = nn.Conv2d(channels, 1, 1)
        for pred in (self.cls_pred, self.obj_pred):
            assert pred.bias is not None
            nn.init.constant_(pred.bias, -math.log(1 / _PRIOR - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 5 + C, h, w)."""
        x = self.stem(x)
        classes, sides = self.cls_convs(x), self.reg_convs(x)
        return torch.cat([self.reg_pred(sides), self.obj_pred(sides), self.cls_pred(classes)], dim=1)


class YOLOX(nn.Module):
    """Backbone, neck and three decoupled heads.

    Args:
        num_classes: classes, without background.
        depth: multiplier of the numbers of bottlenecks.
        width: multiplier of the channels.
        depthwise: as in YOLOX-nano.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int = 80,
        depth: float = 0.33,
        width: float = 0.5,
        depthwise: bool = False,
        pretrained: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.backbone = CSPDarknet(depth, width, depthwise)
        channels = self.backbone.feat_channels
        self.neck = _PAFPN(channels, depth, depthwise)
        hidden = int(256 * width)
        self.heads = nn.ModuleList(_Head(each, hidden, num_classes, depthwise) for each in channels)
        self.decoder = YoloXDecoder(num_classes)
        self.head_outputs = tuple(
            f"heads.{level}.{name}_pred" for level in range(3) for name in ("cls", "reg", "obj")
        )
        load_pretrained(self, pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (N, 5 + C, h, w) at strides 8, 16, 32."""
        maps = self.neck(self.backbone(images))
        return tuple(head(x) for head, x in zip(self.heads, maps, strict=True))


def yolox(num_classes: int = 80, depth: float = 0.33, width: float = 0.5, depthwise: bool = False,
          pretrained: str | Path | None = None) -> YOLOX:  # fmt: skip
    """YOLOX of any size; see :class:`YOLOX`."""
    return YOLOX(num_classes, depth, width, depthwise, pretrained)


def yolox_nano(num_classes: int = 80, pretrained: str | Path | None = None) -> YOLOX:
    """YOLOX-nano: 0.91 M parameters, 1.08 GFLOPs at 416x416."""
    return YOLOX(num_classes, 0.33, 0.25, True, pretrained)


def yolox_tiny(num_classes: int = 80, pretrained: str | Path | None = None) -> YOLOX:
    """YOLOX-tiny: 5.06 M parameters, 6.45 GFLOPs at 416x416."""
    return YOLOX(num_classes, 0.33, 0.375, False, pretrained)


def yolox_s(num_classes: int = 80, pretrained: str | Path | None = None) -> YOLOX:
    """YOLOX-s: 9.0 M parameters, 26.8 GFLOPs at 640x640."""
    return YOLOX(num_classes, 0.33, 0.5, False, pretrained)
