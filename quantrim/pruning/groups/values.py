"""What the walk over an exported graph knows about tensors and operator calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils._pytree import tree_leaves

from quantrim.pruning.groups.slots import ChannelIds

#: ChannelIds along each dimension; None where positions are no channels (batch, height, width).
Dims = tuple[ChannelIds | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor.

    Attributes:
        shape: its sizes.
        dims: slots along each dimension.
        even: dimensions along which all values are the same by construction, as after ``expand``: they take
            the size of whatever they meet, and bind nothing.
    """

    shape: tuple[int, ...]
    dims: Dims
    even: frozenset[int] = frozenset()

    def axis(self, axis: int) -> ChannelIds | None:
        """ChannelIds along an axis, negative ones counted from the end."""
        return self.dims[axis]

    def binds(self, axis: int, size: int) -> bool:
        """Whether a dimension of this size, counted from the end, must keep step with this tensor's."""
        rank = len(self.shape)
        return rank >= -axis and self.shape[axis] == size and (size == 1 or rank + axis not in self.even)

    @property
    def constant(self) -> bool:
        """Whether all of its values are the same by construction."""
        return len(self.even) == len(self.shape)

    @property
    def tracked(self) -> bool:
        """Whether any dimension has slots."""
        return any(dim is not None for dim in self.dims)


#: What a call returns: a tensor, several, or something that holds no channels.
Result = Value | list[Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class GraphCall:
    """One call of an operator.

    Attributes:
        op: the ATen overload.
        arguments: by the schema's names, tensors as :class:`Value`.
        shapes: sizes of each tensor that it returns.
        layer: path of the module that calls it.
    """

    op: Any
    arguments: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    layer: str

    @property
    def name(self) -> str:
        """The operator's name without overload: ``conv2d``."""
        return str(getattr(self.op, "_opname", None) or self.op)

    @property
    def place(self) -> str:
        """For messages: the module, or the whole model."""
        return repr(self.layer) if self.layer else "the model"

    def tensor(self, name: str) -> Value | None:
        """A tensor argument, None where it was not given."""
        value = self.arguments.get(name)
        return value if isinstance(value, Value) else None

    def input(self) -> Value:
        """The first tensor argument."""
        return next(self.tensors())

    def tensors(self) -> Iterator[Value]:
        """All tensor arguments, those in lists too."""
        return (leaf for leaf in tree_leaves(self.arguments) if isinstance(leaf, Value))

    def untracked(self, constant: bool = False) -> Result:
        """Results without slots, of one value everywhere where they are ``constant``."""
        values: list[Any] = [
            Value(shape, (None,) * len(shape), frozenset(range(len(shape)) if constant else ()))
            for shape in self.shapes
        ]
        return values[0] if len(values) == 1 else values or None


def normal_axis(axis: int, rank: int) -> int:
    """A non-negative axis."""
    return axis % rank if rank else 0
