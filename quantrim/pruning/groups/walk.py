"""The walk over an exported graph: every tensor gets slots, every operator ties or freezes them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map

from quantrim.modules import named_tensors
from quantrim.pruning.groups.capture import Part
from quantrim.pruning.groups.slots import ChannelIds, SlotSpace
from quantrim.pruning.groups.values import Dims, GraphCall, Result, Value

#: A rule ties and freezes slots of a call's inputs and says which slots its outputs have.
Rule = Callable[["Walk", GraphCall], Result]


@dataclass(frozen=True, slots=True)
class Member:
    """A dimension of a parameter or buffer; or a whole number in an attribute, as if of a vector so long."""

    tensor: str
    dim: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention whose heads go as a whole.

    Attributes:
        sizes: that a head may have.
        lockstep: with each head go as many channels of the embedding, since the forward takes the width of a
            head for that of the embedding over the number of heads.
    """

    sizes: frozenset[int]
    lockstep: bool = False


class Walk:
    """ChannelIds of all parameters and buffers of a module, and what its graphs say about them.

    Args:
        module: the model; parameters under two names have one set of slots, under the first name.
        attentions: in which layers heads go as a whole, by path; in others, equal positions of all heads.
    """

    def __init__(self, module: nn.Module, attentions: Mapping[str, Attention] | None = None) -> None:
        self.attentions = attentions or {}
        #: Sizes of heads in layers with attention.
        self.head_sizes: dict[str, set[int]] = {}
        #: Slots that stand for dimensions split into several, and whether they are heads, by the layer.
        self.splits: list[tuple[str, ChannelIds, bool]] = []
        #: What linear layers read, and where.
        self.read_by: list[tuple[str, ChannelIds]] = []
        #: Dimensions that calls in a layer read or make, by the layer and their size.
        self.widths: dict[tuple[str, int], dict[bytes, ChannelIds]] = {}
        self.space = SlotSpace()
        self.tensors = named_tensors(module)
        self.names = _canonical_names(self.tensors)
        self.members: dict[Member, ChannelIds] = {}
        self.outputs_of: list[ChannelIds] = []
        self.inputs_of: list[ChannelIds] = []
        self.scales: list[ChannelIds] = []
        self.normalised: list[ChannelIds] = []
        self.doubts: list[tuple[ChannelIds, str]] = []
        self.seen: set[str] = set()
        self.calls: list[tuple[GraphCall, Result]] = []

    @property
    def unseen(self) -> list[str]:
        """Parameters and buffers that no graph reads, in the module's order."""
        return [name for name in dict.fromkeys(self.names.values()) if name not in self.seen]

    def parameter(self, name: str) -> Value:
        """Value of a parameter or buffer by any of its names; slots are allocated at first sight."""
        name = self.names[name]
        tensor = self.tensors[name]
        if not tensor.is_floating_point():
            return Value(tuple(tensor.shape), (None,) * tensor.ndim)
        dims: list[ChannelIds] = []
        for dim, size in enumerate(tensor.shape):
            member = Member(name, dim)
            if member not in self.members:
                self.members[member] = self.space.new(size)
            dims.append(self.members[member])
        return Value(tuple(tensor.shape), tuple(dims))

    def tie(self, first: ChannelIds | None, second: ChannelIds | None, reason: str) -> ChannelIds | None:
        """Tie two dimensions that must stay alike; one without slots freezes the other."""
        if first is not None and second is not None:
            self.space.tie(first, second)
        else:
            self.freeze(first, reason)
            self.freeze(second, reason)
        return first if first is not None else second

    def note_widths(self, call: GraphCall, result: Result) -> None:
        """Remember how wide dimensions with channels are in a layer: attributes may tell the same numbers."""
        for value in (*call.tensors(), *tree_leaves(result)):
            if not isinstance(value, Value):
                continue
            for slots in value.dims:
                if slots is not None:
                    self.widths.setdefault((call.layer, len(slots)), {}).setdefault(slots.tobytes(), slots)

    def note_heads(self, call: GraphCall, *sizes: int) -> None:
        """Remember how wide heads may be in a layer."""
        self.head_sizes.setdefault(call.layer, set()).update(sizes)

    def tie_heads_to_embeddings(self) -> None:
        """Tie the channels that lockstep attention reads to its heads, as many to each in their order."""
        for layer, attention in self.attentions.items():
            heads = [slots for path, slots, of_heads in self.splits if of_heads and path == layer]
            if not attention.lockstep or not heads:
                continue
            _, first = np.unique(heads[0], return_index=True)
            head = heads[0][np.sort(first)]
            for path, inner in self.read_by:
                each, rest = divmod(len(inner), len(head))
                if f"{path}.".startswith(f"{layer}.") and each in attention.sizes and not rest:
                    self.space.tie(inner, np.repeat(head, each))

    def freeze(self, slots: ChannelIds | None, reason: str) -> None:
        """Freeze a dimension if it has slots."""
        if slots is not None:
            self.space.freeze(slots, reason)

    def doubt(self, slots: ChannelIds | None, reason: str) -> None:
        """Leave a dimension to the self-check, with what is to blame where that fails."""
        if slots is not None:
            self.doubts.append((slots, reason))

    def freeze_value(self, value: Value, reason: str) -> None:
        """Freeze all dimensions of a tensor."""
        for slots in value.dims:
            self.freeze(slots, reason)

    def filled(self, slots: ChannelIds | None, size: int, reason: str) -> ChannelIds:
        """The slots, or fresh frozen ones where there are none."""
        if slots is not None:
            return slots
        fresh = self.space.new(size)
        self.space.freeze(fresh, reason)
        return fresh

    def run(self, part: Part, rule_of: Callable[[Any], Rule], record: bool) -> None:
        """Follow every operation of an exported graph.

        Args:
            part: the graph.
            rule_of: chooses the rule of an operator.
            record: keep the calls, for counting costs.
        """
        of = f"the output of {part.path!r}" if part.path else "an output of the model"
        program = part.program.graph_module
        for value in tree_leaves(
            _Follower(self, part.path, rule_of, record)(program, self._placeholders(part))
        ):
            if isinstance(value, Value):
                self.freeze_value(value, of)

    def _placeholders(self, part: Part) -> dict[Any, Result]:
        prefix = f"{part.path}." if part.path else ""
        owned = (InputKind.PARAMETER, InputKind.BUFFER)
        specs = {spec.arg.name: spec for spec in part.program.graph_signature.input_specs}
        values: dict[Any, Result] = {}
        for node in part.program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            if spec.kind in owned and prefix + spec.target in self.names:
                values[node] = self.parameter(prefix + spec.target)
                self.seen |= {self.names[prefix + spec.target]} if node.users else set()
            elif isinstance(node.meta.get("val"), Tensor):
                shape = tuple(map(int, node.meta["val"].shape))
                values[node] = Value(shape, (None,) * len(shape))
            else:
                values[node] = None
        return values


@dataclass(frozen=True, slots=True)
class _Follower:
    """Follows a graph, and the graphs within it.

    Attributes:
        walk: learns what the graph says.
        path: of the exported module.
        rule_of: chooses the rule of an operator.
        record: keep the calls.
    """

    walk: Walk
    path: str
    rule_of: Callable[[Any], Rule]
    record: bool

    def __call__(self, program: torch.fx.GraphModule, values: dict[Any, Any]) -> list[Any]:
        """What a graph returns, from the values of its placeholders."""
        returned: list[Any] = []
        for node in program.graph.nodes:
            if node.op == "get_attr":
                values[node] = operator.attrgetter(node.target)(program)
            elif node.op == "call_function":
                values[node] = self._call(node, values)
            elif node.op == "output":
                returned = _with_values(list(node.args), values)
        return returned

    def _call(self, node: Any, values: dict[Any, Any]) -> Any:
        arguments = _with_values((list(node.args), dict(node.kwargs)), values)
        if node.target is operator.getitem and isinstance(arguments[0][0], list | tuple):
            return arguments[0][0][arguments[0][1]]
        inner = [one for one in arguments[0] if isinstance(one, torch.fx.GraphModule)]
        if len(inner) == 1 and isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._inside(inner[0], arguments[0])
        if not node.users and getattr(node.target, "is_view", False):  # asked for its size, say
            return None
        call = GraphCall(node.target, _bind(node.target, *arguments), _shapes(node), _layer_of(node, self.path))
        if not any(value.tracked for value in call.tensors()):
            return self._untracked(call)
        result = self.rule_of(node.target)(self.walk, call)
        self.walk.note_widths(call, result)
        if self.record:
            self.walk.calls.append((call, result))
        return result

    def _inside(self, program: torch.fx.GraphModule, arguments: list[Any]) -> list[Any]:
        """A block under another setting, as ``torch.autocast``: its operations are like any others.

        Its inputs are the last arguments of the call.
        """
        inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
        given = arguments[len(arguments) - len(inputs) :]
        (returned,) = self(program, dict(zip(inputs, given, strict=True)))
        return list(returned) if isinstance(returned, list | tuple) else [returned]

    def _untracked(self, call: GraphCall) -> Result:
        """Results of a call that reads no channels; what it costs is counted all the same."""
        if self.record and any(True for _ in call.tensors()):
            self.walk.calls.append((call, call.untracked()))
        if call.name.startswith("expand"):
            return expanded(call)
        return call.untracked(constant=all(value.constant for value in call.tensors()) and fills(call))


def _with_values(arguments: Any, values: Mapping[Any, Any]) -> Any:
    """Arguments of a node with values in the place of nodes."""
    return tree_map(lambda leaf: values.get(leaf) if isinstance(leaf, torch.fx.Node) else leaf, arguments)


#: Operators that make tensors of one value.
_FILLS = ("full", "ones", "zeros", "scalar_tensor", "new_full", "new_ones", "new_zeros")
#: Operators that keep a tensor of one value such.
_KEEPS = (
    "view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "permute",
    "transpose",
    "to",
    "clone",
    "contiguous",
    "slice",
)


def fills(call: GraphCall) -> bool:
    """Whether a call of tensors of one value each, or of none, gives a tensor of one value."""
    given = any(True for _ in call.tensors())
    pointwise = isinstance(call.op, torch._ops.OpOverload) and torch.Tag.pointwise in call.op.tags
    return call.name in _FILLS or (given and (pointwise or call.name in _KEEPS))


def expanded(call: GraphCall) -> Value:
    """What ``expand`` makes of a tensor without channels: even along the dimensions that it stretches."""
    value, shape = call.input(), call.shapes[0]
    more = len(shape) - len(value.shape)
    stretched = {
        axis
        for axis, size in enumerate(shape)
        if axis < more or axis - more in value.even or (value.shape[axis - more] == 1 and size > 1)
    }
    return Value(shape, (None,) * len(shape), frozenset(stretched))


def _canonical_names(tensors: dict[str, Tensor]) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def _bind(target: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the operator's schema; what has no schema keeps positions."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return {str(index): value for index, value in enumerate(args)} | kwargs
    bound = {argument.name: argument.default_value for argument in schema.arguments}
    names = [argument.name for argument in schema.arguments]
    return bound | dict(zip(names, args, strict=False)) | kwargs


def _shapes(node: Any) -> tuple[tuple[int, ...], ...]:
    leaves = tree_leaves(node.meta.get("val"))
    return tuple(tuple(map(int, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))


def _layer_of(node: Any, path: str) -> str:
    """Path of the innermost module around a node, in the whole model."""
    stack = node.meta.get("nn_module_stack") or {}
    inner = ""
    for entry in stack.values():
        inner = entry[0] if isinstance(entry, tuple) else str(entry)
    inner = inner.removeprefix("L['self']").removeprefix(".")
    return ".".join(piece for piece in (path, inner) if piece)


def broadcast(walk: Walk, values: list[Value], shape: tuple[int, ...], reason: str) -> Dims:
    """Dimensions of tensors combined position by position, aligned from the right.

    Dimensions of size 1 are stretched and bind nothing, nor do even ones. Any other dimension with slots that
    meets one of the same size without is frozen: the other tensor would keep its size.
    """
    dims: list[ChannelIds | None] = []
    for axis in range(-len(shape), 0):
        meeting = [value.dims[axis] for value in values if value.binds(axis, shape[axis])]
        tracked = [slots for slots in meeting if slots is not None]
        if len(tracked) < len(meeting) and shape[axis] > 1:
            for slots in tracked:
                walk.freeze(slots, reason)
        for slots in tracked[1:]:
            walk.space.tie(tracked[0], slots)
        dims.append(tracked[0] if tracked else None)
    return tuple(dims)
