"""What a segmentation model asks of its backbone: a list of maps, and the channels of each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from quantrim.errors import ConfigError


def channels_of(backbone: nn.Module, indices: Sequence[int], count: int) -> tuple[int, ...]:
    """Channels of the maps that a head picks from its backbone.

    Args:
        backbone: returns a list of maps from ``forward`` and tells their channels in ``feat_channels``.
        indices: which maps; negative ones count from the end.
        count: how many the head needs.

    Raises:
        ConfigError: the backbone does not tell its channels, or the indices don't suit it or the head.
    """
    channels = getattr(backbone, "feat_channels", None)
    if channels is None:
        raise ConfigError(
            f"backbone {type(backbone).__name__} has no feat_channels. Give ResNet50_vd, HRNet_W18, or a "
            "module that returns a list of maps and has their channels in feat_channels."
        )
    if len(indices) != count:
        raise ConfigError(f"backbone_indices {list(indices)}: this head takes {count} of the backbone's maps")
    legal = range(-len(channels), len(channels))
    wrong = [index for index in indices if index not in legal]
    if wrong:
        raise ConfigError(
            f"backbone_indices {list(indices)}: {type(backbone).__name__} has maps 0 to {len(channels) - 1}, "
            f"not {wrong[0]}"
        )
    return tuple(channels[index] for index in indices)
