"""PSPNet: pyramid pooling on a dilated backbone.

Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105. Argument names follow PaddleSeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from quantrim.vision.models.backbones import channels_of
from quantrim.vision.models.blocks import at_size_of, init_kaiming, logit_head
from quantrim.vision.models.pyramid import PyramidPooling
from quantrim.vision.models.weights import load_pretrained


class PSPNet(nn.Module):
    """Averages over coarse grids beside the map, and a classifier.

    Args:
        num_classes: classes that the logits tell apart.
        backbone: module with ``feat_channels`` that returns a list of maps.
        backbone_indices: the auxiliary head's map and the main one.
        pp_out_channels: width after the pyramid.
        bin_sizes: cells along each side of the grids.
        enable_auxiliary_loss: an auxiliary head in training mode.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        backbone_indices: Sequence[int] = (2, 3),
        pp_out_channels: int = 1024,
        bin_sizes: Sequence[int] = (1, 2, 3, 6),
        enable_auxiliary_loss: bool = True,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        aux_channels, in_channels = channels_of(backbone, backbone_indices, 2)
        self.align_corners = align_corners
        self.indices = tuple(backbone_indices)
        self.backbone = backbone
        self.head = nn.Sequential(
            PyramidPooling(in_channels, pp_out_channels, bin_sizes, align_corners=align_corners),
            nn.Dropout(0.1),
            nn.Conv2d(pp_out_channels, num_classes, 1),
        )
        self.aux_head = (
            logit_head(aux_channels, aux_channels // 4, num_classes) if enable_auxiliary_loss else None
        )
        for part in (self.head, self.aux_head):
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
        logits = [self.head(maps[self.indices[1]])]
        if self.training and self.aux_head is not None:
            logits.append(self.aux_head(maps[self.indices[0]]))
        return at_size_of(x, logits, self.align_corners)
