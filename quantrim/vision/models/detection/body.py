"""Any classifier as the body of a detector: its maps at strides 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from quantrim.errors import ModelError, first_line
from quantrim.modules import in_mode

STRIDES = (8, 16, 32)
#: Side of the image whose maps tell strides and channels.
_PROBE = 128


class StridedMaps(nn.Module):
    """The last map of each stride that a classifier computes; what comes after them goes.

    Args:
        classifier: any module that torch.fx can trace, such as ``torchvision.models.resnet18()``.

    Raises:
        ModelError: it can't be traced, or has no map at one of the strides.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        found = _last_maps(classifier)
        names = {place: str(index) for index, (place, _) in enumerate(found)}
        self.body = create_feature_extractor(classifier, return_nodes=names)
        self.feat_channels = tuple(channels for _, channels in found)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Three maps of images (N, 3, H, W)."""
        maps = self.body(images)
        return [maps[str(index)] for index in range(len(STRIDES))]


def _last_maps(classifier: nn.Module) -> list[tuple[str, int]]:
    """Name of the node, and channels, of the last map of each stride."""
    name = type(classifier).__name__
    try:
        nodes = get_graph_node_names(classifier)[1]
        every = create_feature_extractor(classifier, return_nodes=nodes[1:])
        with in_mode(every, training=False), torch.no_grad():
            values: Mapping[str, Tensor] = every(torch.zeros(1, 3, _PROBE, _PROBE))
    except Exception as error:  # whatever a model of any library does while it is traced
        raise ModelError(
            f"{name} can't be the body of a detector: tracing fails ({first_line(error)})"
        ) from error
    found = []
    for stride in STRIDES:
        side = _PROBE // stride
        fitting = [
            (node, int(value.shape[1]))
            for node, value in values.items()
            if isinstance(value, Tensor) and value.ndim == 4 and tuple(value.shape[2:]) == (side, side)
        ]
        if not fitting:
            raise ModelError(f"{name} has no map at stride {stride}; a body needs 8, 16 and 32.")
        found.append(fitting[-1])
    return found


def as_body(backbone: nn.Module) -> nn.Module:
    """The backbone itself where it tells its maps' channels, else the maps of a classifier."""
    return backbone if hasattr(backbone, "feat_channels") else StridedMaps(backbone)
