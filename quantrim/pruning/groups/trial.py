"""Groups tried on copies: those whose removal is not exact are found by bisection, mended, or frozen.

A forward that fails because of a size may have read it from an attribute of its module (``num_heads``,
``hidden_dim``). Attributes there that equal the width of a dimension with the group's channels are then pruned
with the group, as if they were tensors so long, and the check has the last word. Attention whose heads can't
lose positions is followed anew with whole heads as units, and where that fails, with heads and channels of the
embedding in lockstep, as ``nn.MultiheadAttention`` and every forward with ``C // num_heads`` need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from torch import nn

from quantrim.pruning.cost.cost import full_widths, macs_model
from quantrim.pruning.groups.capture import Capture
from quantrim.pruning.groups.check import Checker, Failure
from quantrim.pruning.groups.groups import (
    ChannelGraph,
    ChannelGroup,
    Frozen,
    Indices,
    WrittenSize,
    channel_graph,
    joined,
)
from quantrim.pruning.groups.walk import Attention, Member

#: Most choices of attributes that are tried where a layer fails.
_SUBSETS = 12
#: Shares of a group that its trial removes.
_TRIED = (0.35, 0.65)


def prunable_graph(
    module: nn.Module, captures: Sequence[Capture], checker: Checker, *, protect: Sequence[str] = ()
) -> ChannelGraph:
    """The groups that passed the check, with attention taken apart as far as it can be.

    Args:
        module: the model; it is left as it was.
        captures: its graphs.
        checker: of the same module.
        protect: as for :func:`quantrim.pruning.groups.groups.channel_graph`.
    """
    attentions: dict[str, Attention] = {}
    found: list[ChannelGraph] = []
    while True:
        graph = channel_graph(module, captures, protect=protect, attentions=attentions)
        whole = _advanced(attentions, graph.stuck_attentions())
        if not any(one.lockstep for one in whole.values()) and whole != attentions:
            attentions = whole  # the graph alone shows that positions of heads can't go
            continue
        found.append(verified(graph, checker))
        further = _advanced(attentions, found[-1].stuck_attentions())
        if further == attentions:
            return min(found, key=_least_share)
        attentions = further


def _advanced(attentions: Mapping[str, Attention], stuck: Mapping[str, frozenset[int]]) -> dict[str, Attention]:
    """The next way to follow attention of which nothing can be pruned: whole heads, then in lockstep."""
    return {**attentions} | {
        layer: Attention(sizes, lockstep=layer in attentions) for layer, sizes in stuck.items()
    }


def _least_share(graph: ChannelGraph) -> float:
    """Share of the multiply-accumulates that is left with one unit in every group."""
    cost, full = macs_model(graph), full_widths(graph)
    return float(cost(np.ones_like(full))) / max(1.0, float(cost(full)))


def verified(graph: ChannelGraph, checker: Checker, seed: int = 0) -> ChannelGraph:
    """The graph without groups whose trial removal is not exact; those are listed as frozen.

    Args:
        graph: groups as the exported graphs show them.
        checker: of the same module.
        seed: of the trial's choice of units: about half of each group, another share of each, since equal
            shares may fit where a forward divides one width by another.
    """
    generator = np.random.default_rng(seed)
    shares = generator.uniform(*_TRIED, len(graph.groups))
    counts = [
        min(group.units - 1, max(1, round(group.units * share)))
        for group, share in zip(graph.groups, shares, strict=True)
    ]
    units = {
        group.name: generator.choice(group.units, count, replace=False)
        for group, count in zip(graph.groups, counts, strict=True)
    }
    return Trial(graph, units, checker).settled()


class Trial:
    """Bisection over the groups of a graph.

    The groups found good grow as the search goes on, so that two groups that fail only together are told apart
    too.

    Args:
        graph: the groups.
        units: that are removed from each, by name; groups without any are not tried.
        checker: of the same module.
    """

    def __init__(self, graph: ChannelGraph, units: Mapping[str, Indices], checker: Checker) -> None:
        self.graph, self.units, self.checker = graph, units, checker
        self.groups = {group.name: group for group in graph.groups}
        self.sizes: dict[Member, WrittenSize] = {}
        self.accepted: list[str] = []
        self.frozen: dict[str, str] = {}

    def settled(self) -> ChannelGraph:
        """The graph with mended groups, without those that failed."""
        self._settle([name for name in self.groups if name in self.units])
        groups = tuple(self.groups[group.name] for group in self.graph.groups)
        return without(replace(self.graph, groups=groups), self.frozen)

    def _failure(self, names: Sequence[str]) -> Failure | None:
        groups = [self.groups[name] for name in names]
        removal = joined(group.removal(self.units[group.name]) for group in groups)
        return self.checker.failure(removal, any(group.normalised for group in groups))

    def _settle(self, names: Sequence[str]) -> None:
        if not names:
            return
        failure = self._failure([*self.accepted, *names])
        if failure is not None and len(names) == 1:
            failure = self._after_mending(names[0], failure)
        if failure is None:
            self.accepted.extend(names)
        elif len(names) == 1:
            self.frozen[names[0]] = "; ".join([*self.groups[names[0]].doubts[:1], failure.reason])
        else:
            middle = len(names) // 2
            self._settle(names[:middle])
            self._settle(names[middle:])

    def _after_mending(self, name: str, failure: Failure) -> Failure | None:
        """What still fails with the attributes that may tell the group's widths pruned with it."""
        before = self.groups, self.sizes
        left: Failure | None = failure
        while left is not None:
            further = self._step_on(name, left)
            if further is left:
                self.groups, self.sizes = before
                return failure
            left = further
        return None

    def _step_on(self, name: str, failure: Failure) -> Failure | None:
        """What fails next once attributes of the layer that failed follow: all that fit, or one or two of them.

        A number may equal a width by chance. The failure itself is returned where nothing helps.
        """
        groups, sizes = self.groups, self.sizes
        fitting = {
            size.member: size
            for size in reversed(self.graph.sizes)
            if name in size.rows and size.member not in sizes and failure.where in (None, size.layer)
        }
        few = [chosen for count in (1, 2) for chosen in combinations(fitting.values(), count)]
        ways = [tuple(fitting.values()), *few] if fitting else []
        for chosen in ways[:_SUBSETS]:
            self.groups, self.sizes = dict(groups), dict(sizes)
            for size in chosen:
                self._adopt(size)
            left = self._failure([*self.accepted, name])
            if left is None or left.where not in (None, failure.where):
                return left
        self.groups, self.sizes = groups, sizes
        return failure

    def _adopt(self, size: WrittenSize) -> None:
        self.sizes[size.member] = size
        for name, rows in size.rows.items():
            self.groups[name] = with_size(self.groups[name], size.member, rows)


def with_size(group: ChannelGroup, member: Member, rows: Indices) -> ChannelGroup:
    """The group with an attribute that is pruned with it."""
    return replace(group, members={**group.members, member: rows}, roles={**group.roles, member: "other"})


def without(graph: ChannelGraph, frozen: Mapping[str, str]) -> ChannelGraph:
    """The graph with some groups frozen, by name with the reason."""
    kept = np.array([group.name not in frozen for group in graph.groups], dtype=bool)
    numbers = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    return replace(
        graph,
        groups=tuple(group for group, keep in zip(graph.groups, kept, strict=True) if keep),
        frozen=(
            *graph.frozen,
            *(Frozen(g.name, frozen[g.name], g.channels) for g in graph.groups if g.name in frozen),
        ),
        group_of_slot=numbers[graph.group_of_slot],
    )
