"""Attributes of layers that tell how many channels they have, brought up to date after channels went."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def tell_sizes(layer: nn.Module, before: Mapping[int, torch.Size]) -> None:
    """Let a layer's attributes tell its new sizes, if one of its own tensors was touched.

    Args:
        layer: with the tensors that it has now.
        before: sizes before, by the identity of those tensors.
    """
    own = {**layer._parameters, **layer._buffers}
    changed = {name: tensor for name, tensor in own.items() if tensor is not None and id(tensor) in before}
    if changed:
        weight = changed.get("weight", next(iter(changed.values())))
        _tell_sizes(layer, weight, before[id(weight)])


@functools.singledispatch
def _tell_sizes(layer: nn.Module, weight: Tensor, before: torch.Size) -> None:
    """A module of another kind: what it remembers of sizes is found by the self-check."""


@_tell_sizes.register
def _(layer: _ConvNd, weight: Tensor, before: torch.Size) -> None:
    if weight.ndim < 3:  # only the bias was touched
        return
    if layer.groups > 1 and before[1] == 1:  # depthwise: whole groups went
        layer.groups = layer.groups * weight.shape[0] // before[0]
    layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups


@_tell_sizes.register
def _(layer: _ConvTransposeNd, weight: Tensor, before: torch.Size) -> None:
    if weight.ndim < 3:
        return
    if layer.groups > 1 and before[0] == layer.groups:
        layer.groups = weight.shape[0]
    layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups


@_tell_sizes.register
def _(layer: nn.Linear, weight: Tensor, before: torch.Size) -> None:
    if weight.ndim == 2:
        layer.out_features, layer.in_features = weight.shape


@_tell_sizes.register
def _(layer: _NormBase, weight: Tensor, before: torch.Size) -> None:
    layer.num_features = len(weight)


@_tell_sizes.register
def _(layer: nn.GroupNorm, weight: Tensor, before: torch.Size) -> None:
    layer.num_channels = len(weight)


@_tell_sizes.register(nn.LayerNorm)
@_tell_sizes.register(nn.RMSNorm)
def _(layer: Any, weight: Tensor, before: torch.Size) -> None:
    layer.normalized_shape = tuple(weight.shape)


@_tell_sizes.register
def _(layer: nn.PReLU, weight: Tensor, before: torch.Size) -> None:
    layer.num_parameters = len(weight)


@_tell_sizes.register
def _(layer: nn.Embedding, weight: Tensor, before: torch.Size) -> None:
    layer.num_embeddings, layer.embedding_dim = weight.shape
