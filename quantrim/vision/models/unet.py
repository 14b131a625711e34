"""U-Net with batch norm and same-size convolutions, as PaddleSeg builds it.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv 1505.04597. The
paper has 1024 channels at the bottom and unpadded convolutions; this one ends at 512 and keeps the size.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from quantrim.vision.models.blocks import at_size_of, conv_bn_relu, init_kaiming, resize
from quantrim.vision.models.weights import load_pretrained


class UNet(nn.Module):
    """Encoder and decoder joined at every scale.

    Args:
        num_classes: classes that the logits tell apart.
        align_corners: how every bilinear resize maps its corners.
        use_deconv: upsample by transposed convolutions instead of bilinear resizes.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        align_corners: bool = False,
        use_deconv: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        widths = (64, 128, 256, 512, 512)
        self.align_corners = align_corners
        self.entry = _double_conv(3, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), _double_conv(above, below))
            for above, below in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            _Up(below, skip, out, align_corners, use_deconv)
            for below, skip, out in ((512, 512, 256), (256, 256, 128), (128, 128, 64), (64, 64, 64))
        )
        self.head = nn.Conv2d(64, num_classes, 3, padding=1)
        init_kaiming(self)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [(N, num_classes, H, W)] of images, float32 (N, 3, H, W); there is no auxiliary head."""
        maps = [self.entry(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        y = maps.pop()
        for up in self.up:
            y = up(y, maps.pop())
        return at_size_of(x, [self.head(y)], self.align_corners)


def _double_conv(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(conv_bn_relu(in_channels, out_channels), conv_bn_relu(out_channels, out_channels))


class _Up(nn.Module):
    """Upsample, concatenate with the encoder's map of that scale, two convolutions."""

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, align_corners: bool, deconv: bool
    ):
        super().__init__()
        self.align_corners = align_corners
        self.deconv = nn.ConvTranspose2d(in_channels, out_channels // 2, 2, 2) if deconv else None
        above = out_channels // 2 if deconv else in_channels
        self.convs = _double_conv(above + skip_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.deconv is not None:
            x = self.deconv(x)
        x = resize(x, skip.shape[-2:], self.align_corners)  # also after deconv, where the size was odd
        return self.convs(torch.cat([x, skip], dim=1))
