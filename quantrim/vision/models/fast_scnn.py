"""Fast-SCNN: learning to downsample, a global feature extractor on top, fusion with the early features.

Poudel et al., "Fast-SCNN: Fast Semantic Segmentation Network", arXiv 1902.04502, table 1. Argument names follow
PaddleSeg.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.vision.models.blocks import (
    at_size_of,
    conv_bn,
    conv_bn_relu,
    init_kaiming,
    logit_head,
    resize,
    separable_conv,
)
from quantrim.vision.models.pyramid import PyramidPooling
from quantrim.vision.models.weights import load_pretrained


class FastSCNN(nn.Module):
    """Real-time segmentation network of about a million parameters.

    Args:
        num_classes: classes that the logits tell apart.
        enable_auxiliary_loss: a second head, on the features at 1/8, in training mode.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        enable_auxiliary_loss: bool = True,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.downsample = nn.Sequential(
            conv_bn_relu(3, 32, 3, 2), separable_conv(32, 48, 2), separable_conv(48, 64, 2)
        )
        self.extractor = nn.Sequential(
            *_bottlenecks(64, 64, 2),
            *_bottlenecks(64, 96, 2),
            *_bottlenecks(96, 128, 1),
            # 1x1 as in the paper's parameter count; PaddleSeg fuses by 3x3, which adds 262 thousand
            PyramidPooling(128, 128, fuse_kernel=1, align_corners=align_corners),
        )
        self.fusion = _FeatureFusion(64, 128, 128, align_corners)
        self.head = nn.Sequential(
            separable_conv(128, 128), separable_conv(128, 128), nn.Dropout(0.1), nn.Conv2d(128, num_classes, 1)
        )
        self.aux_head = logit_head(64, 32, num_classes) if enable_auxiliary_loss else None
        init_kaiming(self)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of a batch.

        Args:
            x: images, float32 (N, 3, H, W).

        Returns:
            (N, num_classes, H, W) of the main head; in training mode the auxiliary head's after it.
        """
        early = self.downsample(x)
        logits = [self.head(self.fusion(early, self.extractor(early)))]
        if self.training and self.aux_head is not None:
            logits.append(self.aux_head(early))
        return at_size_of(x, logits, self.align_corners)


def _bottlenecks(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    """Three inverted bottlenecks of expansion 6; the first has the stride."""
    first = _InvertedBottleneck(in_channels, out_channels, stride)
    return [first, *(_InvertedBottleneck(out_channels, out_channels, 1) for _ in range(2))]


class _InvertedBottleneck(nn.Module):
    """Expand, depthwise, project without activation; with the input added where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int = 6):
        super().__init__()
        wide = in_channels * expansion
        self.adds_input = stride == 1 and in_channels == out_channels
        self.body = nn.Sequential(
            conv_bn_relu(in_channels, wide, 1),
            conv_bn_relu(wide, wide, 3, stride, groups=wide),
            conv_bn(wide, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x if self.adds_input else self.body(x)


class _FeatureFusion(nn.Module):
    """Sum of the early features and the upsampled global ones (table 2)."""

    def __init__(self, early_channels: int, global_channels: int, out_channels: int, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.of_global = nn.Sequential(
            conv_bn_relu(global_channels, global_channels, 3, groups=global_channels),
            conv_bn(global_channels, out_channels, 1),
        )
        self.of_early = conv_bn(early_channels, out_channels, 1)

    def forward(self, early: Tensor, deep: Tensor) -> Tensor:
        deep = resize(deep, early.shape[-2:], self.align_corners)
        return F.relu(self.of_early(early) + self.of_global(deep))
