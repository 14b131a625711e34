"""Which tensors depend on the input, whatever has made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override


class Dependence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the input through every operator, below autograd and torch.jit, where function modes don't see.

    Memory is what depends: views share it, and a write into a buffer of zeros makes the buffer depend, too.

    Args:
        args: positional inputs of the run that is followed.
        kwargs: its keyword inputs.
    """

    def __init__(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, Any] = {}
        self._add((args, kwargs))

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def _add(self, values: Any) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._storages[storage._cdata] = storage  # kept, so that its address isn't given away again

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor in self for tensor in tensors):
            self._add(output)
            self._add(_written(func, args, kwargs))
        return output


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """Arguments that an operator changes in place."""
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | dict(kwargs)
    changed = (a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    return [named[name] for name in changed if name in named]
