"""torchvision's SSD detectors with their heads laid open: maps out, no pre- or post-processing inside.

Liu et al., "SSD: Single Shot MultiBox Detector", arXiv 1512.02325; SSDLite is Sandler et al.'s
(arXiv 1801.04381) on MobileNetV3 (Howard et al., arXiv 1905.02244).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

from quantrim.detection import SsdDecoder
from quantrim.errors import ModelError
from quantrim.modules import in_mode
from quantrim.vision.models.weights import load_pretrained

#: Side of the image whose maps tell channels and stride.
_PROBE = 256


class TorchvisionSSD(nn.Module):
    """Backbone and heads of a torchvision ``SSD``, SSDLite or not.

    Args:
        detector: such as ``torchvision.models.detection.ssdlite320_mobilenet_v3_large()``.
        num_classes: classes without background, checked where it is given.
        pretrained: a weight file of this model, or None.

    Raises:
        ModelError: it is no torchvision SSD, or has other classes.
    """

    def __init__(
        self, detector: nn.Module, num_classes: int | None = None, pretrained: str | Path | None = None
    ) -> None:
        super().__init__()
        if not isinstance(detector, SSD):
            raise ModelError(f"{type(detector).__name__} is no torchvision SSD; give such as ssd300_vgg16.")
        self.backbone = detector.backbone
        self.cls_heads = detector.head.classification_head.module_list
        self.reg_heads = detector.head.regression_head.module_list
        boxes = detector.anchor_generator
        sizes = tuple(tuple((float(w), float(h)) for w, h in own) for own in default_sizes(boxes))
        found = _last_conv(self.cls_heads[0]).out_channels // len(sizes[0]) - 1
        if num_classes is not None and found != num_classes:
            raise ModelError(
                f"the detector tells {found} classes and the background apart, not {num_classes} and the "
                f"background. Build it with num_classes={num_classes + 1}."
            )
        self.decoder = SsdDecoder(found, sizes, _PROBE // _maps(detector.backbone)[0].shape[2])
        self.head_outputs = tuple(
            f"{name}.{level}{_path_of_last_conv(head)}"
            for name, heads in (("cls_heads", self.cls_heads), ("reg_heads", self.reg_heads))
            for level, head in enumerate(heads)
        )
        load_pretrained(self, pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Class logits (N, A * (C + 1), h, w) of every level, then offsets (N, A * 4, h, w) of every level."""
        maps = list(self.backbone(images).values())
        classes = [head(x) for head, x in zip(self.cls_heads, maps, strict=True)]
        return (*classes, *(head(x) for head, x in zip(self.reg_heads, maps, strict=True)))


def _maps(backbone: nn.Module) -> list[Tensor]:
    """Maps of an empty image of 256 x 256."""
    device = next(backbone.parameters()).device
    with in_mode(backbone, training=False), torch.no_grad():
        return list(backbone(torch.zeros(1, 3, _PROBE, _PROBE, device=device)).values())


def _last_conv(head: nn.Module) -> nn.Conv2d:
    convs = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    return convs[-1]


def _path_of_last_conv(head: nn.Module) -> str:
    names = [name for name, module in head.named_modules() if isinstance(module, nn.Conv2d)]
    return f".{names[-1]}" if names[-1] else ""


def default_sizes(boxes: DefaultBoxGenerator) -> list[list[tuple[float, float]]]:
    """(width, height) of the default boxes of each level, in torchvision's order, as shares of the canvas.

    Scale s and the mean of s and the next level's as squares, then s at every aspect ratio and its inverse
    (SSD, section 2.2).
    """
    levels = []
    for level, ratios in enumerate(boxes.aspect_ratios):
        scale, wider = boxes.scales[level], boxes.scales[level + 1]
        mean = (scale * wider) ** 0.5
        sizes = [(scale, scale), (mean, mean)]
        for ratio in ratios:
            width, height = scale * ratio**0.5, scale / ratio**0.5
            sizes += [(width, height), (height, width)]
        levels.append([(min(w, 1.0), min(h, 1.0)) for w, h in sizes] if boxes.clip else sizes)
    return levels


def ssdlite(
    num_classes: int = 90, width: float = 1.0, min_ratio: float = 0.2, max_ratio: float = 0.95,
    pretrained: str | Path | None = None,
) -> TorchvisionSSD:  # fmt: skip
    """SSDLite on MobileNetV3-large as ``ssdlite320_mobilenet_v3_large`` builds it: 3.44 M parameters.

    Args:
        num_classes: classes, without background.
        width: multiplier of the backbone's and the extra layers' channels.
        min_ratio: side of the smallest default boxes as a share of the canvas; likewise ``max_ratio``.
        max_ratio: of the largest ones.
        pretrained: a weight file of this model, or None.
    """
    norm: Callable[..., nn.Module] = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)
    layers = mobilenet_v3_large(width_mult=width, norm_layer=norm, reduced_tail=True).features
    strided = [index for index, block in enumerate(layers) if getattr(block, "_is_cn", False)]
    backbone = SSDLiteFeatureExtractorMobileNet(layers, strided[-1], norm, width_mult=width)
    boxes = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=min_ratio, max_ratio=max_ratio)
    channels = [one.shape[1] for one in _maps(backbone)]
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), num_classes + 1, norm)
    detector = SSD(backbone, boxes, (320, 320), num_classes + 1, head=head)
    return TorchvisionSSD(detector, num_classes, pretrained)
