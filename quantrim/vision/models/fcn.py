"""FCN head on a backbone: a 1x1 convolution and a classifier, with HRNet the network of its paper.

Shelhamer et al., "Fully Convolutional Networks for Semantic Segmentation", arXiv 1411.4038; Wang et al.,
arXiv 1908.07919, figure 4 (b). Argument names follow PaddleSeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from quantrim.vision.models.backbones import channels_of
from quantrim.vision.models.blocks import at_size_of, conv_bn_relu, init_kaiming
from quantrim.vision.models.weights import load_pretrained


class FCN(nn.Module):
    """Per-position classifier on one map of a backbone.

    Args:
        num_classes: classes that the logits tell apart.
        backbone: module with ``feat_channels`` that returns a list of maps.
        backbone_indices: the one map to read.
        channels: width of the head; the map's own by default.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        backbone_indices: Sequence[int] = (-1,),
        channels: int | None = None,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        (in_channels,) = channels_of(backbone, backbone_indices, 1)
        width = channels or in_channels
        self.align_corners = align_corners
        self.index = backbone_indices[0]
        self.backbone = backbone
        self.head = nn.Sequential(conv_bn_relu(in_channels, width, 1), nn.Conv2d(width, num_classes, 1))
        init_kaiming(self.head)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [(N, num_classes, H, W)] of images, float32 (N, 3, H, W); there is no auxiliary head."""
        return at_size_of(x, [self.head(self.backbone(x)[self.index])], self.align_corners)
