"""Segmentation models of other libraries in the form that quantrim's own have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from quantrim.errors import ModelError
from quantrim.vision.models.blocks import at_size_of


class Segmenter(nn.Module):
    """Wraps a module that returns logits as a tensor, a sequence, or a mapping with the main ones under "out".

    torchvision returns the mapping, with "aux" in eval mode too; segmentation-models-pytorch returns a tensor.

    Args:
        module: takes images (N, 3, H, W); its logits (N, num_classes, h, w) may be smaller than the images.
        align_corners: how the logits are resized to the images.
    """

    def __init__(self, module: nn.Module, align_corners: bool = False):
        super().__init__()
        self.module = module
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits (N, num_classes, H, W) of images (N, 3, H, W): the main ones, in training mode all of them.

        Raises:
            ModelError: the module returns something else.
        """
        logits = self._logits(self.module(x))
        return at_size_of(x, logits if self.training else logits[:1], self.align_corners)

    def _logits(self, outputs: Any) -> list[Tensor]:
        if isinstance(outputs, Mapping) and "out" in outputs:
            outputs = [outputs["out"], *(value for key, value in outputs.items() if key != "out")]
        logits = [outputs] if isinstance(outputs, Tensor) else list(outputs) if outputs is not None else []
        if not logits or not all(isinstance(logit, Tensor) and logit.ndim == 4 for logit in logits):
            raise ModelError(
                f"{type(self.module).__name__} returns {type(outputs).__name__}, not logits of shape "
                "(N, num_classes, H, W). Name a segmentation model."
            )
        return logits
