"""Attributes of layers that tell how many channels they have, brought up to date after channels went.

Layers of torch are known. Of any other module a whole number in an attribute (``num_heads``, ``sizes[1]``) may
be the width of something; :mod:`quantrim.pruning.groups.trial` finds what it follows, and then it is pruned as
the dimension of a tensor is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
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


def written_sizes(layer: nn.Module) -> Iterator[tuple[str, int]]:
    """Whole numbers above 1 among a layer's attributes, with their names: ``num_heads``, ``sizes.1``."""
    for name, value in vars(layer).items():
        if name.startswith("_"):
            continue
        if type(value) is int and value > 1:
            yield name, value
        elif isinstance(value, list | tuple) and all(type(one) is int for one in value):
            yield from ((f"{name}.{index}", one) for index, one in enumerate(value) if one > 1)


def size_at(module: nn.Module, path: str) -> int | None:
    """The whole number in an attribute such as ``blocks.0.attn.num_heads``; None where there is none."""
    layer, name = _owner(module, path)
    return None if layer is None else dict(written_sizes(layer)).get(name)


def write_size(module: nn.Module, path: str, size: int) -> None:
    """Put a number in the place of the one that :func:`size_at` reads."""
    layer, name = _owner(module, path)
    attribute, _, index = name.partition(".")
    if index:
        sizes = getattr(layer, attribute)
        changed = [size if number == int(index) else one for number, one in enumerate(sizes)]
        setattr(layer, attribute, type(sizes)(changed))
    else:
        setattr(layer, attribute, size)


def block_at(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a path; None where there is none, or it went already."""
    try:
        found = module.get_submodule(path)
    except AttributeError:
        return None
    return None if isinstance(found, nn.Identity) else found


def _owner(module: nn.Module, path: str) -> tuple[nn.Module | None, str]:
    """The layer that has an attribute, and the attribute's name in it."""
    words = path.split(".")
    length = 2 if words[-1].isdigit() else 1
    try:
        return module.get_submodule(".".join(words[:-length])), ".".join(words[-length:])
    except AttributeError:
        return None, path
