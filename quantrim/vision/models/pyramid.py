"""Context at several scales: pyramid pooling (PSPNet) and atrous spatial pyramid pooling (DeepLab)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.vision.models.blocks import conv_bn_relu, global_average, resize, separable_conv


def pool_to_bins(x: Tensor, bins: int) -> Tensor:
    """Average of (N, C, H, W) over a grid of ``bins`` by ``bins`` cells, as one average-pooling operation.

    Equal to ``adaptive_avg_pool2d`` where ``bins`` divides the size. Elsewhere all cells have one size and may
    overlap by more: adaptive pooling has cells of unequal size, which ONNX can only say with a pile of Gather
    nodes that no engine runs in INT8. A map smaller than the grid stays as it is.

    Returns:
        (N, C, min(bins, H), min(bins, W)).
    """
    if bins == 1:
        return global_average(x)
    height, width = x.shape[-2:]
    rows, columns = min(bins, height), min(bins, width)
    stride = (height // rows, width // columns)
    kernel = (height - (rows - 1) * stride[0], width - (columns - 1) * stride[1])
    return F.avg_pool2d(x, kernel, stride)


class PyramidPooling(nn.Module):
    """Pyramid pooling module of PSPNet: the map beside its averages over coarse grids, fused by a convolution.

    Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105, figure 3.

    Args:
        in_channels: channels of the map; each scale is projected to ``in_channels / len(bin_sizes)``.
        out_channels: channels after fusion.
        bin_sizes: cells along each side, scale by scale.
        fuse_kernel: size of the fusing convolution.
        align_corners: how the averages are resized to the map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bin_sizes: Sequence[int] = (1, 2, 3, 6),
        fuse_kernel: int = 3,
        align_corners: bool = False,
    ):
        super().__init__()
        width = in_channels // len(bin_sizes)
        self.bin_sizes = tuple(bin_sizes)
        self.align_corners = align_corners
        self.projections = nn.ModuleList(conv_bn_relu(in_channels, width, 1) for _ in self.bin_sizes)
        self.fuse = conv_bn_relu(in_channels + width * len(self.bin_sizes), out_channels, fuse_kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        parts = [x]
        for bins, project in zip(self.bin_sizes, self.projections, strict=True):
            parts.append(resize(project(pool_to_bins(x, bins)), x.shape[-2:], self.align_corners))
        return self.fuse(torch.cat(parts, dim=1))


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling with image-level features.

    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587, figure 5.

    Args:
        in_channels: channels of the map.
        out_channels: channels of each branch and of the result.
        ratios: dilation of each branch; 1 means a 1x1 convolution.
        separable: depthwise separable branches, as DeepLabV3+ has them.
        align_corners: how the image-level feature is resized to the map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ratios: Sequence[int],
        separable: bool = False,
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(_branch(in_channels, out_channels, ratio, separable) for ratio in ratios)
        self.image_level = conv_bn_relu(in_channels, out_channels, 1)
        self.fuse = nn.Sequential(
            conv_bn_relu(out_channels * (len(ratios) + 1), out_channels, 1), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        parts = [branch(x) for branch in self.branches]
        parts.append(resize(self.image_level(global_average(x)), x.shape[-2:], self.align_corners))
        return self.fuse(torch.cat(parts, dim=1))


def _branch(in_channels: int, out_channels: int, ratio: int, separable: bool) -> nn.Module:
    if ratio == 1:
        return conv_bn_relu(in_channels, out_channels, 1)
    if separable:
        return separable_conv(in_channels, out_channels, dilation=ratio)
    return conv_bn_relu(in_channels, out_channels, 3, dilation=ratio)
