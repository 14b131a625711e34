"""How many units each group keeps: from a request, and what is known of losses and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quantrim.errors import ModelError
from quantrim.journal import Journal
from quantrim.pruning.config import PruneConfig
from quantrim.pruning.cost.cost import full_widths
from quantrim.pruning.cost.solver import (
    Choices,
    Cost,
    Limits,
    Solution,
    allowed_units,
    by_threshold,
    expected_loss,
    solve,
    tightened,
    uniform,
)
from quantrim.pruning.groups.groups import ChannelGraph, ChannelGroup
from quantrim.pruning.sensitivity.criteria import (
    DATA_DRIVEN,
    Examples,
    Scores,
    loss_of_estimates,
    loss_of_magnitude,
)
from quantrim.pruning.sensitivity.curves import Sensitivity
from quantrim.pruning.sensitivity.probe import Probe
from quantrim.pruning.survey import Survey
from quantrim.pruning.together import Together, together


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of a model before widths are chosen; nothing of it is needed.

    Attributes:
        examples: batches and loss, for the criteria that need gradients.
        sensitivity: measured losses of each group; without it the criterion's scores predict them.
        probe: samples on which whole models are compared; the chosen widths are then improved together.
        objective: cost to lower; multiply-accumulates by default.
        surveyed: result of :func:`quantrim.pruning.survey` of the module.
        rounds: of improving widths together.
        journal: keeps what is measured meanwhile, so that a killed run goes on where it was.
    """

    examples: Examples | None = None
    sensitivity: Sensitivity | None = None
    probe: Probe | None = None
    objective: Cost | None = None
    surveyed: Survey | None = None
    rounds: int = 2
    journal: Journal | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Widths to be chosen.

    Attributes:
        module: the model.
        graph: the groups that are left.
        scores: of their units.
        cost: what is to be lowered.
        config: the request.
        known: of losses.
    """

    module: nn.Module
    graph: ChannelGraph
    scores: Mapping[str, Scores]
    cost: Cost
    config: PruneConfig
    known: Known


def choose(task: Task) -> Solution:
    """Widths for a request.

    Raises:
        ModelError: the ratio can't be reached.
    """
    config, cost, groups = task.config, task.cost, task.graph.groups
    if config.of_channels:
        kept = uniform(groups, config.limits, config.share)
        return Solution(kept, float(cost(kept)), 0.0, True)
    before = float(cost(full_widths(task.graph)))
    if before <= 0:
        raise ModelError("the model has no convolution or matrix product whose cost could be lowered.")
    target, choices = before * (1 - config.share), choices_of(task)
    if config.method == "threshold" and task.known.sensitivity is not None:
        solution = by_threshold(task.known.sensitivity.curves(), groups, config.limits, cost, target)
    else:
        solution = solve(choices, cost, target)
    if not solution.reached:
        most = 1 - solution.cost / before
        raise ModelError(unreachable(config.share, most, config.limits, task.graph), field="ratio")
    kept = tightened(choices, cost, solution.kept, target)
    solution = Solution(kept, float(cost(kept)), expected_loss(choices, kept), True)
    if task.known.probe is None or config.method == "threshold":
        return solution
    search = Together(task.module, groups, task.scores, task.known.probe, journal=task.known.journal)
    starts = [solution.kept, *_by_other_means(task, target)]
    return together(search, choices, cost, target, starts, rounds=task.known.rounds)


def _by_other_means(task: Task, target: float) -> list[NDArray[np.int64]]:
    """Widths that other ways would choose: by the criterion alone, by a common threshold."""
    known, config = task.known, task.config
    if known.sensitivity is None:
        return []
    plain = choices_of(replace(task, known=replace(known, sensitivity=None)))
    alone = solve(plain, task.cost, target)
    level = by_threshold(known.sensitivity.curves(), task.graph.groups, config.limits, task.cost, target)
    ways = ((plain, alone), (choices_of(task), level))
    return [tightened(choices, task.cost, one.kept, target) for choices, one in ways if one.reached]


def choices_of(task: Task) -> list[Choices]:
    """Allowed widths of every group with the loss of each."""
    return [_choices(group, task) for group in task.graph.groups]


def _choices(group: ChannelGroup, task: Task) -> Choices:
    kept, sensitivity = allowed_units(group, task.config.limits), task.known.sensitivity
    if sensitivity is not None and group.name in sensitivity.groups:
        loss = sensitivity.loss(group.name, 1 - kept / group.units)
    elif sensitivity is not None or group.is_block:  # not measured: left alone
        kept, loss = kept[:1], np.zeros(1)
    elif task.config.criterion in DATA_DRIVEN:
        loss = loss_of_estimates(task.scores[group.name], kept)
    else:
        loss = loss_of_magnitude(task.scores[group.name], kept)
    return Choices(kept, loss)


def unreachable(ratio: float, most: float, limits: Limits, graph: ChannelGraph) -> str:
    """What to say of a ratio that is out of reach."""
    return (
        f"ratio {ratio:.4g} can't be reached: at most {most:.3f} of the cost can be removed with channels in "
        f"multiples of {limits.align}, at least {limits.min_channels} a layer, no more than "
        f"{limits.max_ratio:.2g} of a group, and {len(graph.frozen)} layers frozen. Ask for less, or lower "
        "align, min_channels or protect."
    )


def over_remaining(objective: Cost, whole: ChannelGraph, graph: ChannelGraph) -> Cost:
    """The objective as a function of the groups that are left; those frozen since are whole."""
    full = full_widths(whole)
    left = {group.name for group in graph.groups}
    columns = np.array([i for i, group in enumerate(whole.groups) if group.name in left], dtype=np.int64)

    def cost(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        every = np.broadcast_to(full, (*np.shape(kept)[:-1], len(full))).copy()
        every[..., columns] = kept
        return objective(every)

    return cost


def measured_groups(survey: Survey) -> tuple[ChannelGroup, ...]:
    """Groups that have more than one allowed width."""
    return tuple(group for group in survey.graph.groups if len(allowed_units(group, survey.limits)) > 1)
