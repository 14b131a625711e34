"""Channels removed from the user's own module, in place, with everything that knows their number."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim.swa_utils import AveragedModel

from quantrim.errors import ModelError
from quantrim.modules import named_tensors
from quantrim.pruning.groups.groups import Removal
from quantrim.pruning.groups.walk import Member

#: Positions kept of a tensor, by dimension.
Kept = dict[int, Tensor]
_LAST = torch.channels_last


def remove(
    module: nn.Module,
    removal: Removal,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    followers: Sequence[nn.Module] = (),
) -> None:
    """Take positions out of parameters and buffers.

    Parameters stay the same objects, so optimizers and tied layers keep hold of them. Attributes such as
    ``out_channels`` follow the tensors.

    Args:
        module: the model; changed in place.
        removal: positions by dimension of a tensor.
        optimizer: its state (momenta, ...) of the module's parameters is sliced alike; state of another shape
            than its parameter is dropped, and starts anew.
        followers: modules of the same structure, such as a moving average of the weights (torch's
            ``AveragedModel`` too); sliced alike.

    Raises:
        ModelError: the removal does not fit the module.
    """
    modules = [module, *(one.module if isinstance(one, AveragedModel) else one for one in followers)]
    for one, kept in [(one, _kept(one, removal)) for one in modules]:  # all are checked before one is changed
        tensors = named_tensors(one)
        touched = {id(tensors[name]): (tensors[name], dims) for name, dims in kept.items()}
        before = {key: tensor.shape for key, (tensor, _) in touched.items()}
        for tensor, dims in touched.values():
            _slice_tensor(tensor, dims, optimizer)
        for layer in one.modules():
            _update_attributes(layer, before)


def zero(module: nn.Module, removal: Removal) -> None:
    """Set the positions to zero instead of removing them."""
    tensors = named_tensors(module)
    with torch.no_grad():
        for member, positions in removal.items():
            index = torch.as_tensor(positions, device=tensors[member.tensor].device)
            tensors[member.tensor].index_fill_(member.dim, index, 0.0)


def _kept(module: nn.Module, removal: Removal) -> dict[str, Kept]:
    tensors = named_tensors(module)
    kept: dict[str, Kept] = {}
    for member, positions in removal.items():
        tensor = tensors.get(member.tensor)
        if tensor is None or member.dim >= tensor.ndim or positions.max(initial=-1) >= tensor.shape[member.dim]:
            raise ModelError(
                f"dimension {member.dim} of {member.tensor!r} can't lose position {positions.max(initial=-1)}: "
                f"{type(module).__name__} is not the model that was analysed."
            )
        left = np.setdiff1d(np.arange(tensor.shape[member.dim]), positions)
        if not len(left):
            raise ModelError(f"nothing would be left of {member.tensor!r}; at least one channel must stay.")
        kept.setdefault(member.tensor, {})[member.dim] = torch.from_numpy(left)
    return kept


def _slice_tensor(tensor: Tensor, dims: Kept, optimizer: torch.optim.Optimizer | None) -> None:
    shape, gradient = tensor.shape, tensor.grad
    tensor.grad = None
    tensor.data = _select(tensor.data, dims)
    if gradient is not None:
        tensor.grad = _select(gradient, dims)
    if optimizer is None or tensor not in optimizer.state:
        return
    state = optimizer.state[tensor]
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    if any(value.shape != shape and value.numel() > 1 for value in tensors):
        del optimizer.state[tensor]  # factored, as Adafactor's: starts anew for this parameter
        return
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape:
            state[name] = _select(value, dims)


def _select(tensor: Tensor, dims: Kept) -> Tensor:
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=_LAST)
    for dim, left in dims.items():
        tensor = tensor.index_select(dim, left.to(tensor.device))
    return tensor.clone(memory_format=_LAST if last else torch.contiguous_format)


def _update_attributes(layer: nn.Module, before: Mapping[int, torch.Size]) -> None:
    """Let a layer's attributes tell its new sizes, if one of its own tensors was touched."""
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


def inverse(kept: Mapping[Member, Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> Removal:
    """The removal that leaves these positions of tensors of these shapes."""
    return {
        member: np.setdiff1d(np.arange(shapes[member.tensor][member.dim]), np.asarray(left, dtype=np.int64))
        for member, left in kept.items()
    }
