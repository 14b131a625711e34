"""BiSeNet V2: a wide shallow branch for details, a narrow deep one for meaning, guided aggregation of both.

Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation",
arXiv 2004.02147. Argument names follow PaddleSeg.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from quantrim.vision.models.blocks import (
    Residual,
    at_size_of,
    conv_bn,
    conv_bn_relu,
    global_average,
    init_kaiming,
    logit_head,
    resize,
)
from quantrim.vision.models.weights import load_pretrained


class BiSeNetV2(nn.Module):
    """Two-branch network for real-time segmentation.

    Args:
        num_classes: classes that the logits tell apart.
        lambd: width of the semantic branch's first stages over the detail branch's.
        align_corners: how every bilinear resize maps its corners.
        head_channels: width of the main head; PaddleSeg builds 128, the paper's complexity counts 1024.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        lambd: float = 0.25,
        align_corners: bool = False,
        head_channels: int = 128,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        widths = (int(64 * lambd), int(128 * lambd), 64, 128)
        self.align_corners = align_corners
        self.detail = _detail_branch()
        self.semantic = _SemanticBranch(widths)
        self.aggregation = _GuidedAggregation(128, align_corners)
        self.head = logit_head(128, head_channels, num_classes)
        self.aux_heads = nn.ModuleList(logit_head(width, width, num_classes) for width in widths)
        init_kaiming(self)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of a batch.

        Args:
            x: images, float32 (N, 3, H, W).

        Returns:
            (N, num_classes, H, W) of the main head; in training mode those of four auxiliary heads after it.
        """
        stages = self.semantic(x)
        logits = [self.head(self.aggregation(self.detail(x), stages[-1]))]
        if self.training:
            logits += [head(stage) for head, stage in zip(self.aux_heads, stages, strict=False)]
        return at_size_of(x, logits, self.align_corners)


def _detail_branch() -> nn.Module:
    """Three stages of plain 3x3 convolutions, to 128 channels at 1/8."""
    return nn.Sequential(
        conv_bn_relu(3, 64, 3, 2),
        conv_bn_relu(64, 64),
        conv_bn_relu(64, 64, 3, 2),
        conv_bn_relu(64, 64),
        conv_bn_relu(64, 64),
        conv_bn_relu(64, 128, 3, 2),
        conv_bn_relu(128, 128),
        conv_bn_relu(128, 128),
    )


class _SemanticBranch(nn.Module):
    """Stem and gather-and-expansion layers at 1/4, 1/8, 1/16, 1/32, and the context of the last."""

    def __init__(self, widths: tuple[int, int, int, int]):
        super().__init__()
        stem, third, fourth, fifth = widths
        self.stem = _Stem(stem)
        self.stage3 = nn.Sequential(_shrinking_layer(stem, third), _gather_expand(third))
        self.stage4 = nn.Sequential(_shrinking_layer(third, fourth), _gather_expand(fourth))
        self.stage5 = nn.Sequential(_shrinking_layer(fourth, fifth), *(_gather_expand(fifth) for _ in range(3)))
        self.context = _ContextEmbedding(fifth)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stage2 = self.stem(x)
        stage3 = self.stage3(stage2)
        stage4 = self.stage4(stage3)
        stage5 = self.stage5(stage4)
        return stage2, stage3, stage4, stage5, self.context(stage5)


class _Stem(nn.Module):
    """To 1/4: strided convolutions beside max pooling, fused by a convolution (figure 4a)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv_bn_relu(3, channels, 3, 2)
        self.left = nn.Sequential(
            conv_bn_relu(channels, channels // 2, 1), conv_bn_relu(channels // 2, channels, 3, 2)
        )
        self.right = nn.MaxPool2d(3, 2, padding=1)
        self.fuse = conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fuse(torch.cat([self.left(x), self.right(x)], dim=1))


class _ContextEmbedding(nn.Module):
    """Adds a summary of the whole picture to each position (figure 4b)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.project = conv_bn_relu(channels, channels, 1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.project(self.norm(global_average(x))) + x)


def _gather_expand(channels: int, expansion: int = 6) -> nn.Module:
    """Gather-and-expansion layer of stride 1 (figure 5b)."""
    wide = channels * expansion
    return Residual(
        nn.Sequential(
            conv_bn_relu(channels, channels),
            conv_bn(channels, wide, 3, groups=channels),
            conv_bn(wide, channels, 1),
        )
    )


def _shrinking_layer(in_channels: int, out_channels: int, expansion: int = 6) -> nn.Module:
    """Gather-and-expansion layer of stride 2 (figure 5c)."""
    wide = in_channels * expansion
    body = nn.Sequential(
        conv_bn_relu(in_channels, in_channels),
        conv_bn(in_channels, wide, 3, 2, groups=in_channels),
        conv_bn(wide, wide, 3, groups=wide),
        conv_bn(wide, out_channels, 1),
    )
    shortcut = nn.Sequential(
        conv_bn(in_channels, in_channels, 3, 2, groups=in_channels), conv_bn(in_channels, out_channels, 1)
    )
    return Residual(body, shortcut)


class _GuidedAggregation(nn.Module):
    """Each branch gates the other at its own scale; the sum at the finer one is fused (figure 6)."""

    def __init__(self, channels: int, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.detail_keep = nn.Sequential(
            conv_bn(channels, channels, 3, groups=channels), nn.Conv2d(channels, channels, 1)
        )
        self.detail_down = nn.Sequential(
            conv_bn(channels, channels, 3, 2), nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        )
        self.semantic_keep = nn.Sequential(
            conv_bn(channels, channels, 3, groups=channels), nn.Conv2d(channels, channels, 1), nn.Sigmoid()
        )
        self.semantic_up = conv_bn(channels, channels)
        self.fuse = conv_bn(channels, channels)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        size = detail.shape[-2:]
        gate = torch.sigmoid(resize(self.semantic_up(semantic), size, self.align_corners))
        fine = self.detail_keep(detail) * gate
        coarse = self.detail_down(detail) * self.semantic_keep(semantic)
        return self.fuse(fine + resize(coarse, size, self.align_corners))
