"""GCNet: a global context block between the convolutions of the head.

Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", arXiv 1904.11492. Argument
names follow PaddleSeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from quantrim.vision.models.backbones import channels_of
from quantrim.vision.models.blocks import at_size_of, conv_bn_relu, init_kaiming, logit_head
from quantrim.vision.models.weights import load_pretrained


class GCNet(nn.Module):
    """Head with one global context block, on a dilated backbone.

    Args:
        num_classes: classes that the logits tell apart.
        backbone: module with ``feat_channels`` that returns a list of maps.
        backbone_indices: the auxiliary head's map and the main one.
        gc_channels: width of the head.
        ratio: bottleneck of the context block over ``gc_channels``.
        enable_auxiliary_loss: an auxiliary head in training mode.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        backbone_indices: Sequence[int] = (2, 3),
        gc_channels: int = 512,
        ratio: float = 0.25,
        enable_auxiliary_loss: bool = True,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        aux_channels, in_channels = channels_of(backbone, backbone_indices, 2)
        self.align_corners = align_corners
        self.indices = tuple(backbone_indices)
        self.backbone = backbone
        self.context = nn.Sequential(
            conv_bn_relu(in_channels, gc_channels),
            GlobalContext(gc_channels, int(gc_channels * ratio)),
            conv_bn_relu(gc_channels, gc_channels),
        )
        self.head = logit_head(in_channels + gc_channels, gc_channels, num_classes)
        self.aux_head = (
            logit_head(aux_channels, aux_channels // 4, num_classes) if enable_auxiliary_loss else None
        )
        for part in (self.context, self.head, self.aux_head):
            if part is not None:
                init_kaiming(part)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of a batch.

        Args:
            x: images, float32 (N, 3, H, W).

        Returns:
            (N, num_classes, H, W) of the main head; in training mode the auxiliary head's after it.
        """
        maps = self.backbone(x)
        deep = maps[self.indices[1]]
        logits = [self.head(torch.cat([deep, self.context(deep)], dim=1))]
        if self.training and self.aux_head is not None:
            logits.append(self.aux_head(maps[self.indices[0]]))
        return at_size_of(x, logits, self.align_corners)


class GlobalContext(nn.Module):
    """Adds to every position one vector: a softmax-weighted mean of all positions, through a bottleneck.

    Figure 4 (d) of the paper.

    Args:
        channels: channels of the map.
        bottleneck: channels between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, bottleneck, 1),
            nn.LayerNorm([bottleneck, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(bottleneck, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        attention = torch.softmax(self.mask(x).flatten(1), dim=1)
        context = torch.matmul(x.flatten(2), attention.unsqueeze(2))
        return x + self.transform(context.unsqueeze(3))
