"""ResNet-D backbones, dilated for segmentation.

He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", arXiv 1812.01187,
figure 2 (d): three 3x3 convolutions instead of one 7x7, and average pooling before the strided shortcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantrim.errors import ConfigError
from quantrim.vision.models.blocks import Residual, conv_bn, conv_bn_relu, init_kaiming
from quantrim.vision.models.weights import load_pretrained

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
#: Dilation of stages 3 and 4 by output stride; a dilated stage does not stride.
_DILATIONS = {None: (1, 1), 32: (1, 1), 16: (1, 2), 8: (2, 4)}


class ResNetVd(nn.Module):
    """Backbone that returns the map of each of its four stages.

    Args:
        layers: 50, 101 or 152.
        output_stride: image size over the size of the last map: 8, 16 or 32 (None means 32).
        multi_grid: factors of the dilation of stage 4's blocks.
        in_channels: channels of the image.
        pretrained: a weight file of this backbone, or None.

    Attributes:
        feat_channels: channels of the four maps.
    """

    def __init__(
        self,
        layers: int = 50,
        output_stride: int | None = 8,
        multi_grid: Sequence[int] = (1, 1, 1),
        in_channels: int = 3,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        _require("layers", layers, _DEPTHS)
        _require("output_stride", output_stride, _DILATIONS)
        third, fourth = _DILATIONS[output_stride]
        dilations = ((1,), (1,), (third,), tuple(fourth * grid for grid in multi_grid))
        self.feat_channels = (256, 512, 1024, 2048)
        self.stem = nn.Sequential(
            conv_bn_relu(in_channels, 32, 3, 2),
            conv_bn_relu(32, 32),
            conv_bn_relu(32, 64),
            nn.MaxPool2d(3, 2, padding=1),
        )
        strides = (1, 2, 2 if third == 1 else 1, 2 if fourth == 1 else 1)
        widths = (64, *self.feat_channels)
        self.stages = nn.ModuleList(
            _stage(widths[i], widths[i + 1], depth, strides[i], dilations[i])
            for i, depth in enumerate(_DEPTHS[layers])
        )
        init_kaiming(self)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of the four stages of images, float32 (N, in_channels, H, W); the first at 1/4 of the size."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _require(name: str, value: int | None, legal: dict[Any, Any]) -> None:
    if value not in legal:
        raise ConfigError(f"ResNet_vd: {name} is {value!r}; legal: {', '.join(map(str, legal))}")


def _stage(in_channels: int, out_channels: int, depth: int, stride: int, dilations: Sequence[int]) -> nn.Module:
    """Blocks of one stage; the dilations repeat over them."""
    blocks = [_bottleneck(in_channels, out_channels, stride, dilations[0])]
    for index in range(1, depth):
        blocks.append(_bottleneck(out_channels, out_channels, 1, dilations[index % len(dilations)]))
    return nn.Sequential(*blocks)


def _bottleneck(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Module:
    width = out_channels // 4
    body = nn.Sequential(
        conv_bn_relu(in_channels, width, 1),
        conv_bn_relu(width, width, 3, stride, dilation=dilation),
        conv_bn(width, out_channels, 1),
    )
    if in_channels == out_channels:
        return Residual(body)
    shortcut = conv_bn(in_channels, out_channels, 1)
    if stride == 2:
        # ceil_mode meets the padded convolution's size where the map is odd
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        shortcut = nn.Sequential(pool, shortcut)
    return Residual(body, shortcut)


def resnet50_vd(**arguments: Any) -> ResNetVd:
    """ResNet-50-D; arguments as for :class:`ResNetVd`."""
    return ResNetVd(50, **arguments)


def resnet101_vd(**arguments: Any) -> ResNetVd:
    """ResNet-101-D; arguments as for :class:`ResNetVd`."""
    return ResNetVd(101, **arguments)
