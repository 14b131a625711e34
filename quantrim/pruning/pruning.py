"""Pruning in one call: find groups, check them, choose widths, remove, and say what was done."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from quantrim.errors import ConfigError, ModelError
from quantrim.pruning.choose import Known, Task, choose, over_remaining
from quantrim.pruning.cliff import Cliff, answers_kept
from quantrim.pruning.config import Method, PruneConfig, as_paths
from quantrim.pruning.cost.cost import full_widths, macs_model, parameter_count
from quantrim.pruning.cost.solver import Cost, Limits, Solution
from quantrim.pruning.groups.groups import Frozen, Removal, joined
from quantrim.pruning.groups.trial import Trial
from quantrim.pruning.groups.walk import Member
from quantrim.pruning.plan import PruningPlan, plan_of
from quantrim.pruning.sensitivity.criteria import DATA_DRIVEN, Examples, Scores, score
from quantrim.pruning.sensitivity.curves import Sensitivity
from quantrim.pruning.sensitivity.probe import Probe
from quantrim.pruning.surgery import Optimizers, remove
from quantrim.pruning.survey import Survey, survey
from quantrim.pruning.together import chosen_units

#: A share removed that misses the one asked for by more than this is told.
_COARSE = 0.1


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
        blocks: paths of residual blocks that are identities now.
        cliff: how many answers stay as they were; None without a probe.
    """

    plan: PruningPlan
    flops: dict[str, float]
    params: dict[str, int]
    requested: float
    achieved: float
    groups: tuple[GroupReport, ...]
    frozen: tuple[Frozen, ...]
    expected_loss: float
    blocks: tuple[str, ...] = ()
    cliff: Cliff | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of the JSON schema that need neither engine nor data."""
        return {
            "flops": self.flops,
            "params": self.params,
            "requested_ratio": self.requested,
            "achieved_ratio": self.achieved,
            "expected_loss": self.expected_loss,
            "groups": [{"name": g.name, "before": g.before, "after": g.after} for g in self.groups],
            "blocks": list(self.blocks),
            "answers_kept": None if self.cliff is None else asdict(self.cliff),
            "frozen": [{"layer": f.layer, "reason": f.reason, "channels": f.channels} for f in self.frozen],
        }


def prune(
    module: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    channel_ratio: float | None = None,
    criterion: str = "l1",
    examples: Examples | None = None,
    sensitivity: Sensitivity | None = None,
    probe: Probe | None = None,
    method: Method = "marginal",
    objective: Cost | None = None,
    limits: Limits | None = None,
    protect: str | Iterable[str] = (),
    optimizer: Optimizers = None,
    followers: Iterable[nn.Module] = (),
    surveyed: Survey | None = None,
    seed: int = 0,
) -> PruningResult:
    """Remove channels from a module, in place, and prove that what is left computes the same.

    Args:
        module: the model; parameters that lose channels are replaced by new ones.
        example_inputs: a tensor, the positional arguments, or a mapping of keyword arguments of its forward, of
            the shape that costs are counted for.
        ratio: share of the cost to remove, in (0, 1): of FLOPs, or of what ``objective`` counts.
        channel_ratio: instead of ``ratio``, the share of channels to remove from every group.
        criterion: which units go first; see :func:`quantrim.pruning.sensitivity.criteria.score`.
        examples: batches and loss, for the criteria that need gradients.
        sensitivity: measured losses of each group; without it the criterion's scores predict them.
        probe: samples on which whole pruned models are compared, so that widths are chosen together; statistics
            of batch norms are measured anew for that, as they should be afterwards.
        method: "marginal" weighs loss against cost group by group; "threshold" is PaddleSlim's common loss
            threshold and needs ``sensitivity``.
        objective: cost to lower; multiply-accumulates by default. See :mod:`quantrim.pruning.cost.latency`.
        limits: allowed widths.
        protect: paths of layers whose own channels shall stay, or globs such as ``stage1.*``.
        optimizer: one or several; gets the new parameters, and its state is sliced with them.
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
    config = PruneConfig(ratio, channel_ratio, criterion, method, limits or Limits(), as_paths(protect), seed)
    known = Known(examples, sensitivity, probe, objective, surveyed)
    return prune_as(module, example_inputs, config, known, optimizer=optimizer, followers=followers)


def prune_as(
    module: nn.Module,
    example_inputs: Any,
    config: PruneConfig,
    known: Known | None = None,
    *,
    optimizer: Optimizers = None,
    followers: Iterable[nn.Module] = (),
) -> PruningResult:
    """:func:`prune` with the request as data.

    Args:
        module: the model; changed in place.
        example_inputs: as for :func:`prune`.
        config: the request; its limits and protected layers count where nothing is surveyed yet.
        known: of losses and costs.
        optimizer: as for :func:`prune`.
        followers: as for :func:`prune`.

    Raises:
        ConfigError: the request needs what is not known.
        ModelError: the model can't be analysed, or the ratio can't be reached; the module is then unchanged.
    """
    known, _ = known or Known(), config.share  # it asks for something
    _check(config, known)
    looked = known.surveyed or survey(module, example_inputs, limits=config.limits, protect=config.protect)
    _refuse_nan(module)
    scores = score(module, looked.graph.groups, config.criterion, examples=known.examples, seed=config.seed)
    proven = _proven(module, replace(config, limits=looked.limits), known, looked, scores)
    cliff = answers_kept(proven.task, proven.solution.kept)
    result = replace(_carried_out(module, proven, optimizer, followers), cliff=cliff)
    if cliff is not None and cliff.collapsed:
        warnings.warn(cliff.sentence(), stacklevel=3)
    if known.objective is None:  # milliseconds fall in steps
        _tell_if_coarse(result, looked.limits)
    return result


def _check(config: PruneConfig, known: Known) -> None:
    if config.criterion in DATA_DRIVEN and known.examples is None:
        raise ConfigError(
            f"criterion {config.criterion!r} needs examples: batches and a loss.", field="examples"
        )
    if config.method == "threshold" and known.sensitivity is None:
        raise ConfigError(
            "method 'threshold' needs a sensitivity; measure one, or use 'marginal'.", field="sensitivity"
        )


def _refuse_nan(module: nn.Module) -> None:
    for name, tensor in module.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name!r} holds NaN or infinite values. Start from sound weights.")


@dataclass(frozen=True, slots=True, eq=False)
class _Proven:
    """Widths whose removal passed the self-check.

    Attributes:
        task: what they were chosen for.
        solution: the widths.
        removal: positions that go.
    """

    task: Task
    solution: Solution
    removal: Removal


def _proven(
    module: nn.Module, config: PruneConfig, known: Known, looked: Survey, scores: Mapping[str, Scores]
) -> _Proven:
    """Choose widths and check their removal; groups that fail are frozen, and the rest is chosen again."""
    graph = looked.graph
    while True:
        cost: Cost = macs_model(graph)
        if known.objective is not None:
            cost = over_remaining(known.objective, looked.graph, graph)
        task = Task(module, graph, scores, cost, config, known)
        solution = choose(task)
        trial = Trial(graph, chosen_units(graph.groups, scores, solution.kept), looked.checker)
        graph = trial.settled()
        if not trial.frozen:
            touched = (group for group in graph.groups if group.name in trial.units)
            return _Proven(task, solution, joined(group.removal(trial.units[group.name]) for group in touched))


def _carried_out(
    module: nn.Module,
    proven: _Proven,
    optimizer: Optimizers,
    followers: Iterable[nn.Module],
) -> PruningResult:
    graph, config, kept = proven.task.graph, proven.task.config, proven.solution.kept
    full, macs = full_widths(graph), macs_model(graph)
    before = parameter_count(module)
    plan = plan_of(module, proven.removal)
    remove(module, proven.removal, optimizer=optimizer, followers=followers)
    channels = np.array([group.channels_of_unit * (not group.is_block) for group in graph.groups], np.int64)
    if config.of_channels:
        achieved = float(((full - kept) * channels).sum()) / max(1.0, float((full * channels).sum()))
    else:
        achieved = 1 - float(proven.task.cost(kept)) / float(proven.task.cost(full))
    flops = {"before": 2 * float(macs(full)), "after": 2 * float(macs(kept))}
    facts = {"requested_ratio": config.share, "achieved_ratio": achieved, "flops": flops}
    return PruningResult(
        plan=PruningPlan(plan.shapes, plan.kept, facts),
        flops=flops,
        params={"before": before, "after": parameter_count(module)},
        requested=config.share,
        achieved=achieved,
        groups=tuple(
            GroupReport(group.name, group.channels, int(count) * group.channels_of_unit)
            for group, count in zip(graph.groups, kept, strict=True)
            if not group.is_block
        ),
        blocks=tuple(path for path in graph.blocks if Member(path, 0) in proven.removal),
        frozen=graph.frozen,
        expected_loss=proven.solution.loss,
    )


def _tell_if_coarse(result: PruningResult, limits: Limits) -> None:
    if abs(result.achieved - result.requested) > _COARSE:
        warnings.warn(
            f"ratio {result.requested:.2f} was asked for and {result.achieved:.2f} removed: with channels in "
            f"multiples of {limits.align} and at least {limits.min_channels} a layer nothing comes nearer. "
            "Lower align or min_channels, or ask for another ratio.",
            stacklevel=4,
        )
