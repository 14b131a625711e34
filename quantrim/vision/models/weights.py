"""Weights that a model starts from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from quantrim.checkpoints import load_weights
from quantrim.errors import CheckpointError


def load_pretrained(module: nn.Module, pretrained: str | Path | None) -> None:
    """Start a model from a file if one is given; a head for other classes keeps its fresh values.

    Raises:
        CheckpointError: as :func:`load_weights` does; a URL is refused, since nothing here downloads.
    """
    if pretrained is None:
        return
    if "://" in str(pretrained):
        raise CheckpointError(
            f"pretrained: {pretrained} is a URL. Download it, convert Paddle weights to a torch state dict, "
            "and give the local path; or set pretrained: null to start from random weights."
        )
    load_weights(module, pretrained, strict=False)
