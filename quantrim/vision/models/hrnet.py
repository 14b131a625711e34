"""HRNet: branches of several resolutions side by side, exchanged after every module.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.vision.models.blocks import Residual, conv_bn, conv_bn_relu, init_kaiming, resize
from quantrim.vision.models.weights import load_pretrained


class HRNet(nn.Module):
    """Backbone HRNetV2: the maps of all branches resized to the finest one and joined.

    Args:
        width: channels of the finest branch; each coarser one has twice as many.
        modules: exchange modules in stages 2, 3 and 4.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this backbone, or None.

    Attributes:
        feat_channels: channels of the one map, 15 * width.
    """

    def __init__(
        self,
        width: int = 18,
        modules: Sequence[int] = (1, 4, 3),
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        widths = [width * 2**branch for branch in range(4)]
        self.align_corners = align_corners
        self.feat_channels = (sum(widths),)
        self.stem = nn.Sequential(conv_bn_relu(3, 64, 3, 2), conv_bn_relu(64, 64, 3, 2))
        self.stage1 = nn.Sequential(_bottleneck(64), *(_bottleneck(256) for _ in range(3)))
        before = [256]
        self.transitions, self.stages = nn.ModuleList(), nn.ModuleList()
        for branches, count in zip((2, 3, 4), modules, strict=True):
            after = widths[:branches]
            self.transitions.append(_Transition(before, after))
            self.stages.append(nn.Sequential(*(_Exchange(after, align_corners) for _ in range(count))))
            before = after
        init_kaiming(self)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The joined map [(N, 15 * width, H/4, W/4)] of images, float32 (N, 3, H, W)."""
        maps = [self.stage1(self.stem(x))]
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            maps = stage(transition(maps))
        size = maps[0].shape[-2:]
        return [torch.cat([resize(one, size, self.align_corners) for one in maps], dim=1)]


def _bottleneck(in_channels: int, out_channels: int = 256) -> nn.Module:
    width = out_channels // 4
    body = nn.Sequential(
        conv_bn_relu(in_channels, width, 1), conv_bn_relu(width, width), conv_bn(width, out_channels, 1)
    )
    return Residual(body, conv_bn(in_channels, out_channels, 1) if in_channels != out_channels else None)


def _basic_block(channels: int) -> nn.Module:
    return Residual(nn.Sequential(conv_bn_relu(channels, channels), conv_bn(channels, channels)))


class _Transition(nn.Module):
    """One more branch, at half the resolution of the coarsest; others change width where they must."""

    def __init__(self, before: Sequence[int], after: Sequence[int]):
        super().__init__()
        kept = [
            nn.Identity() if old == new else conv_bn_relu(old, new)
            for old, new in zip(before, after, strict=False)
        ]
        self.branches = nn.ModuleList([*kept, conv_bn_relu(before[-1], after[-1], 3, 2)])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [branch(one) for branch, one in zip(self.branches, [*maps, maps[-1]], strict=True)]


class _Exchange(nn.Module):
    """Four residual blocks on each branch, then every branch receives all others (figure 3)."""

    def __init__(self, widths: Sequence[int], align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(
            nn.Sequential(*(_basic_block(width) for _ in range(4))) for width in widths
        )
        self.fuse = nn.ModuleList(
            nn.ModuleList(_route(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(one) for branch, one in zip(self.branches, maps, strict=True)]
        return [self._receive(routes, maps, target) for target, routes in enumerate(self.fuse)]

    def _receive(self, routes: Any, maps: list[Tensor], target: int) -> Tensor:
        size = maps[target].shape[-2:]
        total = resize(routes[0](maps[0]), size, self.align_corners)
        for route, one in zip(routes[1:], maps[1:], strict=True):
            total = total + resize(route(one), size, self.align_corners)
        return F.relu(total)


def _route(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Coarser to finer: 1x1, resized later. Finer to coarser: strided 3x3s, ReLU after all but the last."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_bn(widths[source], widths[target], 1)
    steps = [conv_bn_relu(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv_bn(widths[source], widths[target], 3, 2))


def hrnet_w18(**arguments: Any) -> HRNet:
    """HRNetV2-W18; arguments as for :class:`HRNet`."""
    return HRNet(18, **arguments)


def hrnet_w48(**arguments: Any) -> HRNet:
    """HRNetV2-W48; arguments as for :class:`HRNet`."""
    return HRNet(48, **arguments)
