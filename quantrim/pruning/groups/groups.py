"""Channel groups: which positions of which tensors can only be removed together."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quantrim.errors import ModelError, did_you_mean
from quantrim.modules import example_arguments
from quantrim.pruning.groups.capture import Capture, capture, require_plain
from quantrim.pruning.groups.rules import rule_of
from quantrim.pruning.groups.slots import ChannelIds, Classes
from quantrim.pruning.groups.values import GraphCall, Result
from quantrim.pruning.groups.walk import Attention, Member, Walk
from quantrim.pruning.sizes import written_sizes

#: "out": a weight's own channels; "in": channels it reads; "scale": weight of a norm; "other": biases, ...;
#: "block": a whole residual block.
Role = Literal["out", "in", "scale", "other", "block"]
Indices = NDArray[np.int64]
_UNSEEN = "not reached by an exported graph"


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units that touch the same tensors; each can be removed on its own.

    Attributes:
        name: the first layer that makes these channels.
        members: positions of each unit, int64[units, positions of a unit], by dimension of a tensor.
        roles: what each dimension is to its tensor.
        normalised: a layer or group norm, or a mean, runs over these channels: its statistics change with them.
        doubts: what is probably to blame where the self-check fails.
    """

    name: str
    members: Mapping[Member, Indices]
    roles: Mapping[Member, Role]
    normalised: bool
    doubts: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Number of units."""
        return len(next(iter(self.members.values())))

    @property
    def channels_of_unit(self) -> int:
        """Channels that a unit has in the layer that the group is named after."""
        return next(iter(self.members.values())).shape[1]

    @property
    def channels(self) -> int:
        """Channels of the group in that layer."""
        return self.units * self.channels_of_unit

    @property
    def is_block(self) -> bool:
        """Whether this is a residual block: one unit, which may go."""
        return "block" in self.roles.values()

    def removal(self, units: Sequence[int] | Indices) -> Removal:
        """Positions that go when these units go."""
        chosen = np.asarray(units, dtype=np.int64)
        return {member: np.sort(rows[chosen].ravel()) for member, rows in self.members.items()}


@dataclass(frozen=True, slots=True, eq=False)
class WrittenSize:
    """A whole number in an attribute that may tell the width of a dimension.

    Attributes:
        layer: path of the module whose attribute it is.
        member: the attribute.
        rows: positions along the dimension that go with each unit, int64[units, positions of a unit], by group.
    """

    layer: str
    member: Member
    rows: Mapping[str, Indices]


#: Positions to remove, int64, by dimension of a tensor.
Removal = dict[Member, Indices]


def joined(removals: Iterable[Removal]) -> Removal:
    """Union of removals."""
    collected: dict[Member, list[Indices]] = {}
    for removal in removals:
        for member, positions in removal.items():
            collected.setdefault(member, []).append(positions)
    return {member: np.unique(np.concatenate(parts)) for member, parts in collected.items()}


@dataclass(frozen=True, slots=True)
class Frozen:
    """A layer none of whose own channels, or only some, can be pruned.

    Attributes:
        layer: path of the layer.
        reason: why not.
        channels: number of channels concerned.
    """

    layer: str
    reason: str
    channels: int


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGraph:
    """All that is known about a module's channels.

    Attributes:
        groups: what can be pruned.
        frozen: what can't, with reasons.
        calls: operator calls of the evaluation graph, whose slots ``place`` maps to groups.
        group_of_slot: group of each slot, -1 where it is frozen; the last entry is no slot's and -1.
        unexported: modules that torch.export refused, with its reason.
        sizes: attributes that may have to follow groups.
        heads: slots of heads or of their positions, by the layer with attention, and what sizes heads may have.
        blocks: slots of residual blocks that may go as a whole, by their path.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]
    calls: tuple[tuple[GraphCall, Result], ...]
    group_of_slot: ChannelIds
    unexported: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[WrittenSize, ...] = ()
    heads: Mapping[str, tuple[ChannelIds, frozenset[int]]] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)

    def blocks_around(self, layer: str) -> list[ChannelIds]:
        """Slots of blocks without which a layer costs nothing."""
        inside = f"{layer}."
        return [np.array([slot]) for path, slot in self.blocks.items() if inside.startswith(f"{path}.")]

    def stuck_attentions(self) -> dict[str, frozenset[int]]:
        """Layers of whose attention nothing can be pruned, with the sizes that heads may have."""
        return {
            layer: sizes
            for layer, (slots, sizes) in self.heads.items()
            if (self.group_of_slot[slots] < 0).all()
        }


def captured(module: nn.Module, example_inputs: Any) -> tuple[Capture, ...]:
    """A module's graphs in evaluation and training mode.

    Args:
        module: the model; it is left as it was.
        example_inputs: a tensor, the positional arguments, or a mapping of keyword arguments of its forward.

    Raises:
        ModelError: a wrapper, a parametrised layer, or inputs that the model doesn't accept.
    """
    require_plain(module)
    arguments = example_arguments(example_inputs)
    return tuple(capture(module, arguments, training) for training in (False, True))


def channel_graph(
    module: nn.Module,
    captures: Sequence[Capture],
    *,
    protect: Sequence[str] = (),
    attentions: Mapping[str, Attention] | None = None,
) -> ChannelGraph:
    """Find the channel groups of a module.

    Args:
        module: the model; it is left as it was.
        captures: its graphs.
        protect: paths of layers whose own channels shall stay, or globs such as ``stage1.*``; a path covers
            what is inside.
        attentions: where heads go as a whole, by the layer's path.

    Raises:
        ModelError: a protected path that is no module.
    """
    walk = Walk(module, attentions)
    for one in captures:
        for part in one.parts:
            walk.run(part, rule_of, record=not one.training)
    walk.tie_heads_to_embeddings()
    _freeze_unseen(walk)
    _freeze_protected(walk, module, protect)
    return _graph_of(walk, module, captures)


def _freeze_unseen(walk: Walk) -> None:
    for name in walk.unseen:
        walk.freeze_value(walk.parameter(name), _UNSEEN)


def _freeze_protected(walk: Walk, module: nn.Module, protect: Sequence[str]) -> None:
    modules = [path for path, _ in module.named_modules() if path]
    made = _distinct(walk.outputs_of)
    for glob in protect:
        paths = fnmatch.filter(modules, glob)
        if not paths:
            message = f"protected layer {glob!r} is no module of {type(module).__name__}"
            raise ModelError(message + did_you_mean(glob, modules), field="protect")
        inside = tuple(f"{path}." for path in paths)
        for name, member_slots in walk.members.items():
            if name.tensor.startswith(inside) and np.isin(member_slots, made).all():
                walk.space.freeze(member_slots, "protected by request")


def _graph_of(walk: Walk, module: nn.Module, captures: Sequence[Capture]) -> ChannelGraph:
    classes = walk.space.solve()
    groups = _groups(walk, classes)
    index = {group.name: number for number, group in enumerate(groups)}
    by_class = np.full(int(classes.of_slot.max(initial=-1)) + 1, -1, dtype=np.int64)
    for group in groups:
        for member, rows in group.members.items():
            by_class[classes.of_slot[walk.members[member][rows]]] = index[group.name]
    group_of_slot = np.append(by_class[classes.of_slot], -1)
    failures = {path: reason for one in captures for path, reason in one.failures.items()}
    return ChannelGraph(
        groups,
        _frozen_layers(walk, classes),
        tuple(walk.calls),
        group_of_slot,
        failures,
        tuple(_written_sizes(walk, module, classes, groups)),
        {
            layer: (slots, frozenset(walk.head_sizes[layer]))
            for layer, slots, _ in reversed(walk.splits)
            if layer in walk.head_sizes
        },
    )


def _written_sizes(
    walk: Walk, module: nn.Module, classes: Classes, groups: Sequence[ChannelGroup]
) -> Iterator[WrittenSize]:
    """Attributes of the user's own modules that equal the width of a dimension in their forward."""
    units = {}
    for group in groups:
        first, rows = next(iter(group.members.items()))
        units[group.name] = classes.of_slot[walk.members[first][rows[:, 0]]]
    for path, layer in module.named_modules():
        if type(layer).__module__.startswith("torch.nn") and not isinstance(layer, nn.MultiheadAttention):
            continue  # known to tell_sizes
        for name, size in written_sizes(layer):
            for slots in walk.widths.get((path, size), {}).values():
                labels = classes.of_slot[slots]
                found = {group: _positions(labels, own) for group, own in units.items()}
                of_groups = {group: one for group, one in found.items() if one is not None}
                if of_groups:
                    yield WrittenSize(path, Member(f"{path}.{name}".lstrip("."), 0), of_groups)


def _positions(labels: ChannelIds, units: ChannelIds) -> Indices | None:
    """Where the label of each unit stands, int64[units, positions of a unit]; None unless equally often."""
    order = np.argsort(labels, kind="stable")
    start = np.searchsorted(labels[order], units, "left")
    counts = np.searchsorted(labels[order], units, "right") - start
    if not counts.min() or counts.min() != counts.max():
        return None
    return np.asarray(order[start[:, None] + np.arange(counts[0])])


def _groups(walk: Walk, classes: Classes) -> tuple[ChannelGroup, ...]:
    """Classes with the same dimensions, as often, make a group."""
    members = list(walk.members)
    if not members:
        return ()
    order = {member: number for number, member in enumerate(members)}
    slots = np.concatenate([walk.members[member] for member in members])
    owner = np.concatenate([np.full(len(walk.members[m]), order[m]) for m in members])
    position = np.concatenate([np.arange(len(walk.members[m])) for m in members])
    label = classes.of_slot[slots]
    sorting = np.lexsort((position, owner, label))
    starts = np.flatnonzero(np.diff(label[sorting], prepend=-1))
    found: dict[tuple[int, ...], list[Indices]] = {}
    for rows in np.split(sorting, starts[1:]):
        if int(label[rows[0]]) not in classes.reasons:
            found.setdefault(tuple(owner[rows]), []).append(position[rows])
    roles = _roles(walk)
    normalised = _marked(walk.normalised, walk.space.count, classes)
    doubts = [(classes.of_slot[slots], reason) for slots, reason in walk.doubts]
    made = []
    for owners, units in found.items():
        if len(units) == 1:  # one channel must stay
            continue
        group = _group([members[number] for number in owners], np.stack(units), roles)
        touched = np.concatenate([walk.members[m][rows].ravel() for m, rows in group.members.items()])
        labels = np.unique(classes.of_slot[touched])
        reasons = tuple(dict.fromkeys(reason for one, reason in doubts if np.isin(one, labels).any()))
        made.append(replace(group, normalised=bool(normalised[touched].any()), doubts=reasons))
    return _distinctly_named(made)


def _group(owners: list[Member], units: Indices, roles: Mapping[Member, Role]) -> ChannelGroup:
    members: dict[Member, Indices] = {}
    for member in sorted(dict.fromkeys(owners), key=lambda one: roles[one] != "out"):
        columns = [column for column, owner in enumerate(owners) if owner == member]
        members[member] = units[:, columns]
    first = next(iter(members))
    sorting = np.argsort(members[first][:, 0], kind="stable")
    members = {member: rows[sorting] for member, rows in members.items()}
    return ChannelGroup(layer_of(first), members, {member: roles[member] for member in members}, False)


def _distinctly_named(groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """A layer whose channels fall into several groups lends its name to all: number them."""
    names = [group.name for group in groups]
    counts: dict[str, int] = {}
    result = []
    for group in groups:
        name = group.name
        if names.count(name) > 1:
            counts[name] = counts.get(name, 0) + 1
            name = f"{name}#{counts[name]}"
        result.append(replace(group, name=name))
    return tuple(result)


def _roles(walk: Walk) -> dict[Member, Role]:
    marks: dict[Role, ChannelIds] = {
        "out": _distinct(walk.outputs_of),
        "in": _distinct(walk.inputs_of),
        "scale": _distinct(walk.scales),
    }
    roles: dict[Member, Role] = {}
    for member, slots in walk.members.items():
        fitting = (role for role, marked in marks.items() if np.isin(slots, marked).all() and len(slots))
        roles[member] = next(fitting, "other")
    return roles


def _distinct(arrays: Sequence[ChannelIds]) -> ChannelIds:
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *arrays]))


def _marked(arrays: Sequence[ChannelIds], count: int, classes: Classes) -> NDArray[np.bool_]:
    """Whether the class of each slot was marked."""
    marked = np.zeros(int(classes.of_slot.max(initial=-1)) + 1, dtype=bool)
    for slots in arrays:
        marked[classes.of_slot[slots]] = True
    return marked[classes.of_slot] if count else np.zeros(0, dtype=bool)


def _frozen_layers(walk: Walk, classes: Classes) -> tuple[Frozen, ...]:
    """Layers with frozen channels of their own, the most frequent reason of each; layers never reached."""
    result = []
    for member, role in _roles(walk).items():
        if role != "out":
            continue
        reasons = [classes.reasons.get(int(label)) for label in classes.of_slot[walk.members[member]]]
        given = [reason for reason in reasons if reason is not None]
        if given:
            result.append(Frozen(layer_of(member), max(set(given), key=given.count), len(given)))
    unseen = [Member(name, 0) for name in walk.unseen if walk.tensors[name].ndim > 1]
    return (*result, *(Frozen(layer_of(one), _UNSEEN, len(walk.tensors[one.tensor])) for one in unseen))


def layer_of(member: Member) -> str:
    """Path of the layer that holds a tensor."""
    return member.tensor.rpartition(".")[0] or member.tensor
