"""What can be pruned, what is frozen and why, and how far costs can fall: known before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from quantrim.pruning.config import as_paths
from quantrim.pruning.cost.cost import full_widths, macs_model
from quantrim.pruning.cost.solver import Limits, least_units
from quantrim.pruning.groups.blocks import with_blocks
from quantrim.pruning.groups.check import Checker
from quantrim.pruning.groups.groups import ChannelGraph, captured, channel_graph
from quantrim.pruning.groups.trial import prunable_graph


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What can be pruned, found before any work is done.

    Attributes:
        graph: groups that passed the self-check, and frozen layers with reasons.
        checker: the self-check, for the removal that will be chosen.
        limits: allowed widths.
        flops: of the model as it is.
        least_flops: with every group at its least allowed width.
    """

    graph: ChannelGraph
    checker: Checker = field(repr=False)
    limits: Limits
    flops: float
    least_flops: float

    @property
    def largest_ratio(self) -> float:
        """Largest share of FLOPs that can be removed."""
        return 1 - self.least_flops / self.flops if self.flops else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        prunable = [{"layer": g.name, "channels": g.channels, "units": g.units} for g in self.graph.groups]
        frozen = [{"layer": f.layer, "reason": f.reason, "channels": f.channels} for f in self.graph.frozen]
        return {
            "flops": {"now": self.flops, "least": self.least_flops},
            "largest_ratio": self.largest_ratio,
            "prunable": prunable,
            "frozen": frozen,
            "unexported": dict(self.graph.unexported),
        }


def channel_groups(
    module: nn.Module, example_inputs: Any, *, protect: str | Iterable[str] = (), check: bool = True
) -> ChannelGraph:
    """Channel groups of a module, and what is frozen with the reason.

    Args:
        module: the model; it is left as it was.
        example_inputs: a tensor, the positional arguments, or a mapping of keyword arguments of its forward.
        protect: paths of layers whose own channels shall stay, or globs.
        check: try every group on a copy and freeze those whose removal is not exact.

    Raises:
        ModelError: the model is wrapped or parametrised, or fails on the inputs.
    """
    captures = captured(module, example_inputs)
    if not check:
        return channel_graph(module, captures, protect=as_paths(protect))
    return prunable_graph(module, captures, Checker(module, example_inputs), protect=as_paths(protect))


def survey(
    module: nn.Module, example_inputs: Any, *, limits: Limits | None = None, protect: str | Iterable[str] = ()
) -> Survey:
    """Look before pruning: what is prunable, what is frozen and why, how far FLOPs can fall.

    Args:
        module: the model; it is left as it was.
        example_inputs: as for :func:`channel_groups`; FLOPs are counted on them.
        limits: allowed widths.
        protect: paths of layers whose own channels shall stay, or globs.
    """
    limits = limits or Limits()
    checker = Checker(module, example_inputs)
    graph = prunable_graph(module, captured(module, example_inputs), checker, protect=as_paths(protect))
    graph = with_blocks(graph, checker) if limits.blocks else graph
    cost = macs_model(graph)
    least = least_units(graph.groups, limits)
    return Survey(graph, checker, limits, 2 * float(cost(full_widths(graph))), 2 * float(cost(least)))
