"""Pruning in one call: find groups, check them, choose widths, remove, and say what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantrim.errors import ConfigError, ModelError
from quantrim.pruning.cost.cost import full_widths, macs_model, parameter_count
from quantrim.pruning.cost.solver import (
    Choices,
    Cost,
    Limits,
    Solution,
    allowed_units,
    by_threshold,
    least_units,
    loss_of_estimates,
    loss_of_magnitude,
    solve,
    uniform,
)
from quantrim.pruning.groups.check import Checker, isolate, verified, without
from quantrim.pruning.groups.groups import ChannelGraph, ChannelGroup, Frozen, Removal, channel_graph, joined
from quantrim.pruning.plan import PruningPlan, empty_plan
from quantrim.pruning.sensitivity.criteria import DATA_DRIVEN, Examples, Scores, score
from quantrim.pruning.sensitivity.sensitivity import Sensitivity
from quantrim.pruning.surgery import remove

Method = Literal["marginal", "threshold"]


@dataclass(frozen=True, slots=True)
class GroupReport:
    """Channels of one group before and after.

    Attributes:
        name: the first layer that makes them.
        before: channels before.
        after: channels after.
    """

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class PruningResult:
    """What pruning did.

    Attributes:
        plan: what was removed; saved beside the weights, it makes the pruned model of a fresh one.
        flops: {"before", "after"}: twice the multiply-accumulates on the example inputs.
        params: {"before", "after"}: elements of all parameters.
        requested: the ratio asked for.
        achieved: share of the cost removed (of FLOPs, milliseconds or channels, as was asked).
        groups: widths.
        frozen: layers that were left alone, with reasons.
        expected_loss: sum of the losses that the criterion or the sensitivity file predicts.
    """

    plan: PruningPlan
    flops: dict[str, float]
    params: dict[str, int]
    requested: float
    achieved: float
    groups: tuple[GroupReport, ...]
    frozen: tuple[Frozen, ...]
    expected_loss: float

    def to_json(self) -> dict[str, Any]:
        """The keys of the JSON schema that need neither engine nor data."""
        return {
            "flops": self.flops,
            "params": self.params,
            "requested_ratio": self.requested,
            "achieved_ratio": self.achieved,
            "expected_loss": self.expected_loss,
            "groups": [{"name": g.name, "before": g.before, "after": g.after} for g in self.groups],
            "frozen": [{"layer": f.layer, "reason": f.reason, "channels": f.channels} for f in self.frozen],
        }


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
    module: nn.Module, example_inputs: Any, *, protect: Sequence[str] = (), check: bool = True
) -> ChannelGraph:
    """Channel groups of a module, and what is frozen with the reason.

    Args:
        module: the model; it is left as it was.
        example_inputs: a tensor, the positional arguments, or a mapping of keyword arguments of its forward.
        protect: paths of layers whose own channels shall stay.
        check: try every group on a copy and freeze those whose removal is not exact.

    Raises:
        ModelError: the model is wrapped or parametrised, or fails on the inputs.
    """
    graph = channel_graph(module, example_inputs, protect=protect)
    return verified(graph, Checker(module, example_inputs)) if check else graph


def survey(
    module: nn.Module, example_inputs: Any, *, limits: Limits | None = None, protect: Sequence[str] = ()
) -> Survey:
    """Look before pruning: what is prunable, what is frozen and why, how far FLOPs can fall.

    Args:
        module: the model; it is left as it was.
        example_inputs: as for :func:`channel_groups`; FLOPs are counted on them.
        limits: allowed widths.
        protect: paths of layers whose own channels shall stay.
    """
    limits = limits or Limits()
    checker = Checker(module, example_inputs)
    graph = verified(channel_graph(module, example_inputs, protect=protect), checker)
    cost = macs_model(graph)
    least = least_units(graph.groups, limits)
    return Survey(graph, checker, limits, 2 * float(cost(full_widths(graph))), 2 * float(cost(least)))


def prune(
    module: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    channel_ratio: float | None = None,
    criterion: str = "l1",
    examples: Examples | None = None,
    sensitivity: Sensitivity | None = None,
    method: Method = "marginal",
    objective: Cost | None = None,
    limits: Limits | None = None,
    protect: Sequence[str] = (),
    optimizer: torch.optim.Optimizer | None = None,
    followers: Sequence[nn.Module] = (),
    surveyed: Survey | None = None,
    seed: int = 0,
) -> PruningResult:
    """Remove channels from a module, in place, and prove that what is left computes the same.

    Args:
        module: the model; its parameters stay the same objects.
        example_inputs: a tensor, the positional arguments, or a mapping of keyword arguments of its forward, of
            the shape that costs are counted for.
        ratio: share of the cost to remove, in (0, 1): of FLOPs, or of what ``objective`` counts.
        channel_ratio: instead of ``ratio``, the share of channels to remove from every group.
        criterion: which units go first; see :func:`quantrim.pruning.sensitivity.criteria.score`.
        examples: batches and loss, for the criteria that need gradients.
        sensitivity: measured losses of each group; without it the criterion's scores predict them.
        method: "marginal" weighs loss against cost group by group; "threshold" is PaddleSlim's common loss
            threshold and needs ``sensitivity``.
        objective: cost to lower; multiply-accumulates by default. See :mod:`quantrim.pruning.cost.latency`.
        limits: allowed widths.
        protect: paths of layers whose own channels shall stay.
        optimizer: its state is sliced with the parameters.
        followers: modules of the same structure, such as a moving average, to be pruned alike.
        surveyed: result of :func:`survey` of this module, so that it is not made again.
        seed: of random choices.

    Returns:
        What was done, with the plan that repeats it.

    Raises:
        ConfigError: a ratio outside (0, 1), both or none of them, unknown criterion.
        ModelError: the model can't be analysed, or the ratio can't be reached; the module is then unchanged.

    Example:
        >>> import quantrim, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 4, 3))
        >>> result = quantrim.prune(net, torch.randn(1, 3, 8, 8), ratio=0.5)
        >>> net[0].out_channels, round(result.achieved, 2)
        (16, 0.5)
    """
    wanted = _check_request(ratio, channel_ratio, criterion, examples, sensitivity, method)
    looked = surveyed or survey(module, example_inputs, limits=limits, protect=protect)
    _refuse_nan(module)
    scores = score(module, looked.graph.groups, criterion, examples=examples, seed=seed)
    graph, frozen = looked.graph, dict[str, str]()
    while True:
        graph = without(graph, frozen)
        cost = macs_model(graph)
        goal = cost if objective is None else _over_remaining(objective, looked.graph, graph)
        solution = _choose(
            graph, scores, goal, wanted, ratio is None, sensitivity, method, looked.limits, criterion
        )
        removals = chosen_removals(graph.groups, scores, solution.kept)
        touched = [group for group in graph.groups if group.name in removals]
        removal = joined(removals.values())
        reason = (
            looked.checker.failure(removal, any(group.normalised for group in touched)) if removals else None
        )
        if reason is None:
            break
        frozen = isolate(touched, removals, looked.checker)
        if not frozen:
            raise ModelError(
                f"the self-check fails and no group is to blame: {reason}. Please report the model."
            )
    return _carry_out(module, graph, solution, removal, cost, goal, wanted, ratio is None, optimizer, followers)


def _check_request(
    ratio: float | None,
    channel_ratio: float | None,
    criterion: str,
    examples: Examples | None,
    sensitivity: Sensitivity | None,
    method: str,
) -> float:
    if (ratio is None) == (channel_ratio is None):
        raise ConfigError("give either ratio (share of the cost to remove) or channel_ratio.")
    wanted = ratio if ratio is not None else channel_ratio
    if wanted is None or not 0 < wanted < 1:
        raise ConfigError(f"the pruning ratio must be in (0, 1), it is {wanted}.")
    if criterion in DATA_DRIVEN and examples is None:
        raise ConfigError(f"criterion {criterion!r} needs examples: batches and a loss.")
    if method == "threshold" and sensitivity is None:
        raise ConfigError("method 'threshold' needs a sensitivity; measure one, or use 'marginal'.")
    return wanted


def _refuse_nan(module: nn.Module) -> None:
    for name, tensor in module.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name!r} holds NaN or infinite values. Start from sound weights.")


def _over_remaining(objective: Cost, all_groups: ChannelGraph, graph: ChannelGraph) -> Cost:
    """The objective as a function of the groups that are left; those frozen since are whole."""
    full = full_widths(all_groups)
    left = {group.name for group in graph.groups}
    columns = np.array([i for i, group in enumerate(all_groups.groups) if group.name in left], dtype=np.int64)

    def cost(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        whole = np.broadcast_to(full, (*np.shape(kept)[:-1], len(full))).copy()
        whole[..., columns] = kept
        return objective(whole)

    return cost


def _choose(
    graph: ChannelGraph,
    scores: Mapping[str, Scores],
    cost: Cost,
    wanted: float,
    of_channels: bool,
    sensitivity: Sensitivity | None,
    method: Method,
    limits: Limits,
    criterion: str,
) -> Solution:
    full = full_widths(graph)
    before = float(cost(full))
    if of_channels:
        kept = uniform(graph.groups, limits, wanted)
        return Solution(kept, float(cost(kept)), 0.0, True)
    if before <= 0:
        raise ModelError("the model has no convolution or matrix product whose cost could be lowered.")
    target = before * (1 - wanted)
    if method == "threshold" and sensitivity is not None:
        solution = by_threshold(sensitivity.curves(), graph.groups, limits, cost, target)
    else:
        choices = [_choices(group, scores, sensitivity, limits, criterion) for group in graph.groups]
        solution = solve(choices, cost, target)
    if not solution.reached:
        most = 1 - solution.cost / before if before else 0.0
        raise ModelError(unreachable(wanted, most, limits, graph))
    return solution


def unreachable(ratio: float, most: float, limits: Limits, graph: ChannelGraph) -> str:
    """What to say of a ratio that is out of reach."""
    return (
        f"ratio {ratio:.4g} can't be reached: at most {most:.3f} of the cost can be removed with channels in "
        f"multiples of {limits.align}, at least {limits.min_channels} a layer, and {len(graph.frozen)} "
        "layers frozen. Ask for less, or lower align, min_channels or protect."
    )


def _choices(
    group: ChannelGroup,
    scores: Mapping[str, Scores],
    sensitivity: Sensitivity | None,
    limits: Limits,
    criterion: str,
) -> Choices:
    kept = allowed_units(group, limits)
    if sensitivity is not None and group.name in sensitivity.groups:
        loss = sensitivity.loss(group.name, 1 - kept / group.units)
    elif sensitivity is not None:  # not measured: left alone
        kept, loss = kept[:1], np.zeros(1)
    elif criterion in DATA_DRIVEN:
        loss = loss_of_estimates(scores[group.name], kept)
    else:
        loss = loss_of_magnitude(scores[group.name], kept)
    return Choices(kept, loss)


def chosen_removals(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Scores], kept: NDArray[np.int64]
) -> dict[str, Removal]:
    """The lowest scores of each group go; groups that stay whole are left out."""
    removals = {}
    for group, count in zip(groups, kept, strict=True):
        if count < group.units:
            ranking = np.argsort(scores[group.name], kind="stable")
            removals[group.name] = group.removal(ranking[: group.units - int(count)])
    return removals


def _carry_out(
    module: nn.Module,
    graph: ChannelGraph,
    solution: Solution,
    removal: Removal,
    cost: Cost,
    goal: Cost,
    wanted: float,
    of_channels: bool,
    optimizer: torch.optim.Optimizer | None,
    followers: Sequence[nn.Module],
) -> PruningResult:
    full, kept = full_widths(graph), solution.kept
    before = parameter_count(module)
    plan = empty_plan(module).then(removal)
    remove(module, removal, optimizer=optimizer, followers=followers)
    channels = np.array([group.channels_of_unit for group in graph.groups], dtype=np.int64)
    if of_channels:
        achieved = 1 - float((kept * channels).sum()) / max(1.0, float((full * channels).sum()))
    else:
        achieved = 1 - float(goal(kept)) / float(goal(full))
    flops = {"before": 2 * float(cost(full)), "after": 2 * float(cost(kept))}
    facts = {"requested_ratio": wanted, "achieved_ratio": achieved, "flops": flops}
    return PruningResult(
        plan=PruningPlan(plan.shapes, plan.kept, facts),
        flops=flops,
        params={"before": before, "after": parameter_count(module)},
        requested=wanted,
        achieved=achieved,
        groups=tuple(
            GroupReport(group.name, group.channels, int(count) * group.channels_of_unit)
            for group, count in zip(graph.groups, kept, strict=True)
        ),
        frozen=graph.frozen,
        expected_loss=solution.loss,
    )
