"""DeepLabV3 and DeepLabV3+: atrous spatial pyramid pooling on a dilated backbone.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587, and
"Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", arXiv 1802.02611. Argument
names and details (no 3x3 convolution after the pyramid of V3, separable branches in V3+) follow PaddleSeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from quantrim.vision.models.backbones import channels_of
from quantrim.vision.models.blocks import at_size_of, conv_bn_relu, init_kaiming, resize, separable_conv
from quantrim.vision.models.pyramid import AtrousPyramid
from quantrim.vision.models.weights import load_pretrained


class DeepLabV3(nn.Module):
    """Pyramid of dilated convolutions and a classifier.

    Args:
        num_classes: classes that the logits tell apart.
        backbone: module with ``feat_channels`` that returns a list of maps.
        backbone_indices: the one map to read.
        aspp_ratios: dilations of the pyramid; (1, 12, 24, 36) suits output stride 8.
        aspp_out_channels: width of the pyramid.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        backbone_indices: Sequence[int] = (3,),
        aspp_ratios: Sequence[int] = (1, 6, 12, 18),
        aspp_out_channels: int = 256,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        (in_channels,) = channels_of(backbone, backbone_indices, 1)
        self.align_corners = align_corners
        self.index = backbone_indices[0]
        self.backbone = backbone
        self.head = nn.Sequential(
            AtrousPyramid(in_channels, aspp_out_channels, aspp_ratios, align_corners=align_corners),
            nn.Conv2d(aspp_out_channels, num_classes, 1),
        )
        init_kaiming(self.head)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [(N, num_classes, H, W)] of images, float32 (N, 3, H, W); there is no auxiliary head."""
        return at_size_of(x, [self.head(self.backbone(x)[self.index])], self.align_corners)


class DeepLabV3P(nn.Module):
    """DeepLabV3+: the pyramid's map meets an early one in a small decoder.

    Args:
        num_classes: classes that the logits tell apart.
        backbone: module with ``feat_channels`` that returns a list of maps.
        backbone_indices: the early map and the one under the pyramid.
        aspp_ratios: dilations of the pyramid; (1, 12, 24, 36) suits output stride 8.
        aspp_out_channels: width of the pyramid.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        backbone_indices: Sequence[int] = (0, 3),
        aspp_ratios: Sequence[int] = (1, 6, 12, 18),
        aspp_out_channels: int = 256,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        early_channels, in_channels = channels_of(backbone, backbone_indices, 2)
        self.align_corners = align_corners
        self.indices = tuple(backbone_indices)
        self.backbone = backbone
        self.pyramid = AtrousPyramid(
            in_channels, aspp_out_channels, aspp_ratios, separable=True, align_corners=align_corners
        )
        self.early = conv_bn_relu(early_channels, 48, 1)
        self.head = nn.Sequential(
            separable_conv(aspp_out_channels + 48, 256),
            separable_conv(256, 256),
            nn.Conv2d(256, num_classes, 1),
        )
        for part in (self.pyramid, self.early, self.head):
            init_kaiming(part)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [(N, num_classes, H, W)] of images, float32 (N, 3, H, W); there is no auxiliary head."""
        maps = self.backbone(x)
        early = self.early(maps[self.indices[0]])
        deep = resize(self.pyramid(maps[self.indices[1]]), early.shape[-2:], self.align_corners)
        return at_size_of(x, [self.head(torch.cat([deep, early], dim=1))], self.align_corners)
