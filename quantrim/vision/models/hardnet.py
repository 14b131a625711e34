"""FC-HarDNet-70: U-shaped network of harmonic dense blocks.

Chao et al., "HarDNet: A Low Memory Traffic Network", arXiv 1909.00948. Argument names follow PaddleSeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from quantrim.vision.models.blocks import at_size_of, conv_bn_relu, init_kaiming, resize
from quantrim.vision.models.weights import load_pretrained


class HarDNet(nn.Module):
    """Segmentation network of harmonic dense blocks; the defaults are FC-HarDNet-70.

    Args:
        num_classes: classes that the logits tell apart.
        stem_channels: channels of the four convolutions before the encoder.
        ch_list: channels after each encoder block.
        grmul: factor m by which a layer widens for each link it has beyond the first.
        gr: growth rate k of each block.
        n_layers: layers of each block.
        align_corners: how every bilinear resize maps its corners.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int,
        stem_channels: Sequence[int] = (16, 24, 32, 48),
        ch_list: Sequence[int] = (64, 96, 160, 224, 320),
        grmul: float = 1.7,
        gr: Sequence[int] = (10, 16, 18, 24, 32),
        n_layers: Sequence[int] = (4, 4, 8, 8, 8),
        align_corners: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        self.align_corners = align_corners
        first, second, third, width = stem_channels
        self.stem = nn.Sequential(
            conv_bn_relu(3, first, 3, 2),
            conv_bn_relu(first, second),
            conv_bn_relu(second, third, 3, 2),
            conv_bn_relu(third, width),
        )
        self.encoder, self.transitions = nn.ModuleList(), nn.ModuleList()
        skips = []
        for channels, growth, layers in zip(ch_list, gr, n_layers, strict=True):
            block = HarDBlock(width, growth, grmul, layers)
            self.encoder.append(block)
            self.transitions.append(conv_bn_relu(block.out_channels, channels, 1))
            skips.append(block.out_channels)
            width = channels
        # ceil_mode: the last map is 1/64 of the image, odd for some sizes divisible by 32
        self.shrink = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.joins, self.decoder = nn.ModuleList(), nn.ModuleList()
        for skip, growth, layers in list(zip(skips, gr, n_layers, strict=True))[-2::-1]:
            half = (width + skip) // 2
            block = HarDBlock(half, growth, grmul, layers)
            self.joins.append(conv_bn_relu(width + skip, half, 1))
            self.decoder.append(block)
            width = block.out_channels
        self.head = nn.Conv2d(width, num_classes, 1)
        init_kaiming(self)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [(N, num_classes, H, W)] of images, float32 (N, 3, H, W); there is no auxiliary head."""
        y = self.stem(x)
        skips: list[Tensor] = []
        for block, transition in zip(self.encoder, self.transitions, strict=True):
            y = self.shrink(y) if skips else y
            skips.append(block(y))
            y = transition(skips[-1])
        skips.pop()
        for join, block in zip(self.joins, self.decoder, strict=True):
            skip = skips.pop()
            y = torch.cat([resize(y, skip.shape[-2:], self.align_corners), skip], dim=1)
            y = block(join(y))
        return at_size_of(x, [self.head(y)], self.align_corners)


class HarDBlock(nn.Module):
    """Harmonic dense block: layer k reads the layers k - 2^i for every power of two that divides k.

    The output joins the odd layers and the last one, the only ones that nothing inside keeps to itself.

    Args:
        base_channels: channels of the input, which is layer 0.
        growth_rate: channels of a layer with one link.
        grmul: factor of width for each further link.
        n_layers: layers in the block.
    """

    def __init__(self, base_channels: int, growth_rate: int, grmul: float, n_layers: int):
        super().__init__()
        widths = [base_channels] + [_width(k, growth_rate, grmul) for k in range(1, n_layers + 1)]
        self.links = [_links(k) for k in range(1, n_layers + 1)]
        self.layers = nn.ModuleList(
            conv_bn_relu(sum(widths[j] for j in links), widths[k])
            for k, links in enumerate(self.links, start=1)
        )
        self.kept = [k for k in range(1, n_layers + 1) if k % 2 == 1 or k == n_layers]
        self.out_channels = sum(widths[k] for k in self.kept)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, base_channels, H, W) to (N, out_channels, H, W)."""
        outputs = [x]
        for layer, links in zip(self.layers, self.links, strict=True):
            inputs = [outputs[j] for j in links]
            outputs.append(layer(torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]))
        return torch.cat([outputs[k] for k in self.kept], dim=1)


def _links(layer: int) -> list[int]:
    """Layers that a layer reads, nearest first last: 8 reads 0, 4, 6, 7."""
    powers = [2**i for i in range(layer.bit_length()) if layer % 2**i == 0]
    return [layer - power for power in reversed(powers)]


def _width(layer: int, growth_rate: int, grmul: float) -> int:
    """Channels of a layer: k * m^n for n further links, rounded to an even number."""
    exact = growth_rate * grmul ** (len(_links(layer)) - 1)
    return int(int(exact + 1) / 2) * 2
