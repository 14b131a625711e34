"""MobileNet V1: depthwise separable convolutions in a chain.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
arXiv 1704.04861, table 1.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from quantrim.vision.models.blocks import conv_bn_relu, init_kaiming
from quantrim.vision.models.weights import load_pretrained

#: Output channels at width 1.0 and stride of each separable block.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """Classifier of depthwise separable convolutions.

    Args:
        num_classes: classes that the logits tell apart.
        scale: width multiplier of every layer; at least 8 channels remain.
        in_channels: 3 for colour, 1 for grey images.
        small_input: stride 1 in the first convolution, for images of about 32x32, whose last map would else
            be a single position.
        pretrained: a weight file of this model, or None.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        scale: float = 1.0,
        in_channels: int = 3,
        small_input: bool = False,
        pretrained: str | Path | None = None,
    ):
        super().__init__()
        width = _scaled(32, scale)
        layers = [conv_bn_relu(in_channels, width, 3, 1 if small_input else 2)]
        for channels, stride in _BLOCKS:
            layers.append(_depthwise_separable(width, _scaled(channels, scale), stride))
            width = _scaled(channels, scale)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        init_kaiming(self)
        load_pretrained(self, pretrained)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 (N, num_classes), of images (N, in_channels, H, W)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _scaled(channels: int, scale: float) -> int:
    return max(8, int(channels * scale))


def _depthwise_separable(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Depthwise 3x3 and pointwise convolution, each with batch norm and ReLU (figure 3 of the paper)."""
    return nn.Sequential(
        conv_bn_relu(in_channels, in_channels, 3, stride, groups=in_channels),
        conv_bn_relu(in_channels, out_channels, 1),
    )
