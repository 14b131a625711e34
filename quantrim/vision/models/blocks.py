"""Blocks that several models share; every convolution stands beside its batch norm, so that both fold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Module:
    """Convolution without bias, then batch norm; the padding keeps the size at stride 1."""
    return Conv2dNormActivation(
        in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups, activation_layer=None
    )


def conv_bn_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Module:
    """Convolution without bias, batch norm, ReLU; the padding keeps the size at stride 1."""
    return Conv2dNormActivation(
        in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups
    )


def separable_conv(in_channels: int, out_channels: int, stride: int = 1, *, dilation: int = 1) -> nn.Module:
    """Depthwise 3x3 with batch norm, then pointwise with batch norm and ReLU (no ReLU between them)."""
    return nn.Sequential(
        conv_bn(in_channels, in_channels, 3, stride, dilation=dilation, groups=in_channels),
        conv_bn_relu(in_channels, out_channels, 1),
    )


def logit_head(in_channels: int, mid_channels: int, num_classes: int) -> nn.Module:
    """3x3 convolution, dropout 0.1 and a 1x1 classifier: every auxiliary head, and the main one of some."""
    return nn.Sequential(
        conv_bn_relu(in_channels, mid_channels, 3), nn.Dropout(0.1), nn.Conv2d(mid_channels, num_classes, 1)
    )


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``.

    Args:
        body: ends without activation.
        shortcut: a module of the same output shape; the identity by default.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.body = body
        self.shortcut = shortcut if shortcut is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the body's shape."""
        return F.relu(self.body(x) + self.shortcut(x))


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of (N, C, H, W) to ``size`` (height, width); the tensor itself where it has that size.

    A whole-number enlargement goes by its factor: the exported Resize then has constant scales, where a size
    would be computed by Shape and Concat nodes, since the batch is dynamic.
    """
    old, new = tuple(x.shape[-2:]), tuple(size)
    if old == new:
        return x
    if new[0] % old[0] == 0 and new[1] % old[1] == 0:
        factors = (new[0] // old[0], new[1] // old[1])
        return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=align_corners)
    return F.interpolate(x, size=new, mode="bilinear", align_corners=align_corners)


def at_size_of(image: Tensor, logits: Sequence[Tensor], align_corners: bool) -> list[Tensor]:
    """The logits of every head at the height and width of the image, as all segmentation models return them."""
    return [resize(logit, image.shape[-2:], align_corners) for logit in logits]


def init_kaiming(module: nn.Module) -> None:
    """Start every convolution and linear layer as He et al. (arXiv 1502.01852), every norm as identity.

    Fan-in mode: a classifier has few outputs, and fan-out would start it with huge logits.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def global_average(x: Tensor) -> Tensor:
    """Mean of each channel, (N, C, H, W) to (N, C, 1, 1)."""
    return torch.mean(x, dim=(2, 3), keepdim=True)
