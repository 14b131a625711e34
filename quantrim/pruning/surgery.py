"""Channels removed from the user's own module, in place, with everything that knows their number.

A tensor that loses positions is replaced by a new one, in every place of the module that holds it. torch
remembers sizes of parameters in the nodes that gather their gradients, and those live as long as any loss,
wrapper or hook that was made with them; a parameter that only changed its data would meet them again in the
next backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantrim.errors import ModelError
from quantrim.modules import named_tensors
from quantrim.pruning.groups.groups import Removal
from quantrim.pruning.groups.walk import Member
from quantrim.pruning.sizes import block_at, size_at, tell_sizes, write_size

#: Positions kept of a tensor, by dimension.
Kept = dict[int, Tensor]
#: Who trains a module.
Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None
#: Old tensors with the new ones that stand for them, by the identity of the old.
_Fresh = dict[int, tuple[Tensor, Tensor]]
_LAST = torch.channels_last
#: Where wrappers of moving averages, of data parallelism and of torch.compile hold the module.
_INSIDE = ("module", "ema_model", "ema", "_orig_mod")


class Replaced(nn.Parameter):
    """A parameter that its module no longer has: who goes on training it would train nothing, and is told."""

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """Read by every optimizer before it steps or clears.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "this parameter lost channels and was replaced by a new one, which the optimizer does not know. "
            "Pass optimizer to prune, or make a new optimizer afterwards.",
            field="optimizer",
        )


def remove(
    module: nn.Module,
    removal: Removal,
    *,
    optimizer: Optimizers = None,
    followers: Iterable[nn.Module] = (),
) -> None:
    """Take positions out of parameters and buffers.

    Parameters that lose positions are new objects afterwards, under all of their names, and the optimizer holds
    them in the place of the old ones. Attributes such as ``out_channels`` follow the tensors.

    Args:
        module: the model; changed in place.
        removal: positions by dimension of a tensor.
        optimizer: one or several; gets the new parameters, and its state (momenta, ...) of them sliced alike;
            state of another shape than its parameter is dropped, and starts anew.
        followers: modules of the same structure, such as a moving average of the weights (torch's
            ``AveragedModel`` or timm's ``ModelEmaV3`` too); sliced alike.

    Raises:
        ModelError: the removal does not fit the module.
    """
    modules = [module, *(unwrapped(one, removal) for one in followers)]
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    for each in optimizers:
        _require_plain(each, module, removal)
    # all are checked before one is changed
    for one, kept, sizes in [(one, _kept(one, removal), _sizes_left(one, removal)) for one in modules]:
        tensors = named_tensors(one)
        fresh = _fresh(tensors, kept)
        _put(one, fresh)
        for each in optimizers:
            _hand_over(each, fresh, {id(tensors[name]): dims for name, dims in kept.items()})
        before = {id(new): old.shape for old, new in fresh.values()}
        for layer in one.modules():
            tell_sizes(layer, before)
        for path, size in sizes.items():
            write_size(one, path, size)
        _drop(one, _blocks(one, removal), optimizers)
        for old, _ in fresh.values():
            if isinstance(old, nn.Parameter):
                old.__class__ = Replaced


def unwrapped(follower: nn.Module, removal: Removal) -> nn.Module:
    """The module inside wrappers whose tensors and attributes the removal names."""
    found, names = follower, {member.tensor for member in removal}
    while any(
        size_at(found, name) is None and block_at(found, name) is None
        for name in names - named_tensors(found).keys()
    ):
        inside = (getattr(found, name, None) for name in _INSIDE)
        inner = next((one for one in inside if isinstance(one, nn.Module)), None)
        if inner is None:
            return follower  # its first missing tensor is named in the refusal
        found = inner
    return found


def zero(module: nn.Module, removal: Removal) -> None:
    """Set the positions to zero instead of removing them."""
    tensors = named_tensors(module)
    with torch.no_grad():
        for member, positions in removal.items():
            if member.tensor not in tensors:  # a block, or the number in an attribute, which needs no silence
                continue
            index = torch.as_tensor(positions, device=tensors[member.tensor].device)
            tensors[member.tensor].index_fill_(member.dim, index, 0.0)
        for block in _blocks(module, removal).values():
            for parameter in block.parameters():
                parameter.zero_()


def _kept(module: nn.Module, removal: Removal) -> dict[str, Kept]:
    tensors, others = named_tensors(module), {*_sizes_left(module, removal), *_blocks(module, removal)}
    kept: dict[str, Kept] = {}
    for member, positions in removal.items():
        tensor = tensors.get(member.tensor)
        if member.tensor in others:
            continue
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


def _sizes_left(module: nn.Module, removal: Removal) -> dict[str, int]:
    """What attributes tell afterwards, by their paths."""
    tensors, left = named_tensors(module), dict[str, int]()
    for member, positions in removal.items():
        size = None if member.tensor in tensors else size_at(module, member.tensor)
        if size is None:
            continue
        if positions.max(initial=-1) >= size or len(positions) == size:
            raise ModelError(
                f"{member.tensor!r} is {size} and can't lose {len(positions)}: {type(module).__name__} is not "
                "the model that was analysed."
            )
        left[member.tensor] = size - len(positions)
    return left


def _blocks(module: nn.Module, removal: Removal) -> dict[str, nn.Module]:
    """Residual blocks that go as a whole."""
    tensors = named_tensors(module)
    found = {one.tensor: block_at(module, one.tensor) for one in removal if one.tensor not in tensors}
    return {path: block for path, block in found.items() if block is not None}


def _drop(
    module: nn.Module, blocks: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Put identities in the place of blocks, and take their parameters from the optimizers."""
    if not blocks:
        return
    dropped = {id(block) for block in blocks.values()}
    for owner in list(module.modules()):
        for name, child in owner._modules.items():
            if child is not None and id(child) in dropped:
                owner._modules[name] = nn.Identity().train(child.training)
    left = set(map(id, module.parameters()))
    gone = [one for block in blocks.values() for one in block.parameters() if id(one) not in left]
    lost = set(map(id, gone))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [one for one in group["params"] if id(one) not in lost]
        for one in gone:
            optimizer.state.pop(one, None)
    for one in gone:
        one.__class__ = Replaced


def _fresh(tensors: Mapping[str, Tensor], kept: Mapping[str, Kept]) -> _Fresh:
    """The tensors that lose positions with what is left of them, gradients too."""
    fresh: _Fresh = {}
    for name, dims in kept.items():
        old = tensors[name]
        new = _select(old.detach(), dims)
        if isinstance(old, nn.Parameter):
            new = Tensor._make_subclass(type(old), new, old.requires_grad)
        new.__dict__.update(old.__dict__)  # marks such as "no weight decay"
        if old.grad is not None:
            new.grad = _select(old.grad, dims)
        for hook in (getattr(old, "_backward_hooks", None) or {}).values():
            new.register_hook(hook)  # type: ignore[no-untyped-call]
        for hook in (getattr(old, "_post_accumulate_grad_hooks", None) or {}).values():
            new.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        fresh[id(old)] = (old, new)
    return fresh


def _put(module: nn.Module, fresh: _Fresh) -> None:
    """Put new tensors in the place of old ones, under every name."""
    for owner in module.modules():
        tables: tuple[dict[str, Any], ...] = owner._parameters, owner._buffers
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and id(tensor) in fresh:
                    table[name] = fresh[id(tensor)][1]


def _require_plain(optimizer: torch.optim.Optimizer, module: nn.Module, removal: Removal) -> None:
    """Refuse an optimizer that keeps parameters where new ones can't be put in their place.

    Raises:
        ModelError: it does.
    """
    tensors = named_tensors(module)
    going = {id(tensors[member.tensor]) for member in removal if member.tensor in tensors}
    if isinstance(optimizer, torch.optim.LBFGS):
        return
    for name, value in vars(optimizer).items():
        if name not in ("param_groups", "state") and any(id(leaf) in going for leaf in tree_leaves(value)):
            raise ModelError(
                f"{type(optimizer).__name__} keeps parameters in {name!r} too, where they can't be replaced. "
                "Prune without optimizer, and make a new one afterwards.",
                field="optimizer",
            )


def _hand_over(optimizer: torch.optim.Optimizer, fresh: _Fresh, kept: Mapping[int, Kept]) -> None:
    """Give an optimizer the new parameters, with its state of the old ones."""
    for group in optimizer.param_groups:
        group["params"] = [fresh[id(one)][1] if id(one) in fresh else one for one in group["params"]]
    for key, (old, new) in fresh.items():
        if old not in optimizer.state:
            continue
        state = optimizer.state.pop(old)
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        if any(value.shape != old.shape and value.numel() > 1 for value in tensors):
            continue  # factored, as Adafactor's: starts anew for this parameter
        optimizer.state[new] = {
            name: _select(value, kept[key]) if isinstance(value, Tensor) and value.shape == old.shape else value
            for name, value in state.items()
        }
    if isinstance(optimizer, torch.optim.LBFGS):  # its history is of all parameters together
        optimizer.state.clear()
        optimizer._params, optimizer._numel_cache = optimizer.param_groups[0]["params"], None


def _select(tensor: Tensor, dims: Kept) -> Tensor:
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=_LAST)
    for dim, left in dims.items():
        tensor = tensor.index_select(dim, left.to(tensor.device))
    return tensor.clone(memory_format=_LAST if last else torch.contiguous_format)


def inverse(kept: Mapping[Member, Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> Removal:
    """The removal that leaves these positions of tensors of these shapes."""
    return {
        member: np.setdiff1d(np.arange(shapes[member.tensor][member.dim]), np.asarray(left, dtype=np.int64))
        for member, left in kept.items()
    }
