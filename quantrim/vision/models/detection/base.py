"""What makes a module a detector."""

from __future__ import annotations

from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn

from quantrim.detection import Decoder
from quantrim.errors import ModelError


@runtime_checkable
class Detector(Protocol):
    """A module with a decoder.

    Attributes:
        decoder: what the maps of ``forward`` mean.
        head_outputs: names of the modules that make them.
    """

    decoder: Decoder
    head_outputs: tuple[str, ...]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Raw maps of images (N, 3, H, W)."""
        ...


def is_detector(module: nn.Module) -> TypeGuard[Detector]:
    """Whether the module tells its decoder."""
    return hasattr(module, "decoder") and hasattr(module, "head_outputs")


def require_detector(module: nn.Module) -> Detector:
    """The module as a detector.

    Raises:
        ModelError: it tells no decoder.
    """
    if not is_detector(module):
        raise ModelError(
            f"{type(module).__name__} is no detector: it has no attributes 'decoder' and 'head_outputs'. Name "
            "a detection model, or wrap a torchvision SSD in TorchvisionSSD."
        )
    return module
