"""Widths improved together: losses of whole pruned models, not sums over groups.

Losses measured one group at a time add up wrongly: what one layer loses another can make up for, or suffers
twice. So the last word is a measurement of models that lost channels everywhere. First several ways of choosing
compete (by sensitivity, by the criterion alone, all layers alike, and what lies between); then, at the winner,
every group is made a little wider and a little narrower in turn, which gives prices as they are *there*, and
where a dear group can grow for cheap ones, they swap. All models are compared on the same samples, so that
differences are paired.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantrim.journal import Journal, digest
from quantrim.modules import in_mode
from quantrim.pruning.cost.solver import Choices, Cost, Solution, fitted, widened
from quantrim.pruning.groups.groups import ChannelGroup, Indices, joined
from quantrim.pruning.sensitivity.criteria import Scores
from quantrim.pruning.sensitivity.probe import Losses, Probe, direct_losses
from quantrim.pruning.sensitivity.sensitivity import Job, fingerprint
from quantrim.pruning.sensitivity.statistics import own_statistics, recalibrate_batch_norm
from quantrim.pruning.surgery import remove

Widths = NDArray[np.int64]
#: Share of a group's widths that a trial step spans.
_STEP = 0.12
#: Numbers of swaps that are tried at once.
_SWAPS = (1, 2, 4, 8, 16, 32)
#: A batch of so many samples has statistics of its own that are good enough.
_MANY = 64
#: A rise of so many standard errors shows that a probe is too small to measure statistics on.
_SIGNIFICANT = 2.0


class Together:
    """Losses of a module that has lost channels in all groups at once, statistics measured anew.

    Args:
        module: the model; it is left as it was.
        groups: all groups.
        scores: of each group's units; the lowest go first.
        probe: samples to compare on.
        recalibrate: measure statistics of batch norms anew; None for where the probe is large enough.
        journal: keeps losses, so that a killed run goes on where it was.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, Scores],
        probe: Probe,
        *,
        recalibrate: bool | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.module, self.groups, self.scores, self.probe = module, groups, scores, probe
        self.recalibrate = statistics_hold(module, probe) if recalibrate is None else recalibrate
        self.journal, self._key = journal, dict[str, str]()
        if journal is not None:
            self._key = fingerprint(Job(module, tuple(groups), scores, probe, recalibrate=self.recalibrate))
        self.evaluations = 0
        self._seen: dict[bytes, Losses] = {}

    def __call__(self, kept: Widths) -> Losses:
        """Loss of each sample with these units kept."""
        key = kept.tobytes()
        if key not in self._seen:
            self._seen[key] = self._recalled(kept)
        return self._seen[key]

    def _recalled(self, kept: Widths) -> Losses:
        if self.journal is None:
            return self._measured(kept)
        name = digest(sorted(self._key.items()), kept.tolist())
        return np.array(self.journal.answer(name, list[float], lambda: self._measured(kept).tolist()))

    def _measured(self, kept: Widths) -> Losses:
        self.evaluations += 1
        smaller = copy.deepcopy(self.module)
        units = chosen_units(self.groups, self.scores, kept)
        remove(smaller, joined(one.removal(units[one.name]) for one in self.groups if one.name in units))
        if not self.recalibrate:
            with in_mode(smaller, training=False):
                return direct_losses(smaller, self.probe)
        return _losses_anew(smaller, self.probe)


def _losses_anew(module: nn.Module, probe: Probe) -> Losses:
    """Losses with statistics of batch norms measured on the probe; the module's own are lost."""
    if min(len(inputs) for inputs, _ in probe.batches) >= _MANY:
        with own_statistics(module):
            return direct_losses(module, probe)
    recalibrate_batch_norm(module, (inputs for inputs, _ in probe.batches))
    with in_mode(module, training=False):
        return direct_losses(module, probe)


def most_evaluations(groups: int, rounds: int) -> int:
    """Models that :func:`together` measures at most, for a number of groups."""
    return 6 + rounds * (2 * groups + len(_SWAPS))


def statistics_hold(module: nn.Module, probe: Probe) -> bool:
    """Whether batch norms can be measured anew on a probe without harm: on too few samples they can't."""
    if not any(isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in module.modules()):
        return False
    with in_mode(module, training=False):
        rises = _losses_anew(copy.deepcopy(module), probe) - direct_losses(module, probe)
    error = float(rises.std(ddof=1) / np.sqrt(len(rises))) if len(rises) > 1 else 0.0
    return float(rises.mean()) <= _SIGNIFICANT * error


def chosen_units(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Scores], kept: Widths
) -> dict[str, Indices]:
    """Units that go, by group: those of the lowest scores; groups that stay whole are left out."""
    return {
        group.name: np.argsort(scores[group.name], kind="stable")[: group.units - int(count)]
        for group, count in zip(groups, kept, strict=True)
        if count < group.units
    }


def together(
    search: Together,
    choices: Sequence[Choices],
    cost: Cost,
    target: float,
    starts: Sequence[Widths],
    *,
    rounds: int = 2,
) -> Solution:
    """The best widths found at a target, by losses of whole models.

    Args:
        search: measures them.
        choices: allowed widths of each group.
        cost: cost of the units kept.
        target: not to be passed.
        starts: widths to begin with, all within the target.
        rounds: of steps in all groups; each takes about twice as many measurements as there are groups.
    """
    full = np.array([choice.kept[0] for choice in choices], dtype=np.int64)
    candidates = [*starts, *_between(choices, cost, target, starts[0], full)]
    best = min(candidates, key=lambda kept: float(search(kept).mean()))
    for _ in range(rounds):
        steps = list(_steps(search, choices, cost, best))
        better = min(
            _swaps(steps, choices, cost, target, best),
            key=lambda kept: float(search(kept).mean()),
            default=best,
        )
        if float(search(better).mean()) >= float(search(best).mean()):
            break
        best = better
    rise = float((search(best) - search(full)).mean())
    return Solution(best, float(cost(best)), rise, float(cost(best)) <= target * (1 + 1e-9))


def _between(
    choices: Sequence[Choices], cost: Cost, target: float, start: Widths, full: Widths
) -> Iterator[Widths]:
    """Widths between those of a start and all layers cut alike, at the target."""
    for share in (1.0, 0.5):
        shape = np.where(start > 0, full**share * start ** (1 - share), 0.0)
        found = fitted(choices, cost, shape, target)
        if found is not None:
            yield found


@dataclass(frozen=True, slots=True)
class _Step:
    """A group made wider or narrower.

    Attributes:
        group: its number.
        kept: units after the step.
        price: loss for each piece of cost: won by the wider, lost by the narrower.
        wider: the direction.
    """

    group: int
    kept: int
    price: float
    wider: bool


def _steps(search: Together, choices: Sequence[Choices], cost: Cost, at: Widths) -> Iterator[_Step]:
    """Each group a step wider and a step narrower, the others as they are."""
    now, here = float(cost(at)), search(at)
    for group, choice in enumerate(choices):
        index, stride = (
            int(np.flatnonzero(choice.kept == at[group])[0]),
            max(1, round(_STEP * len(choice.kept))),
        )
        for wider in (True, False):
            other = max(0, index - stride) if wider else min(len(choice.kept) - 1, index + stride)
            if other == index:
                continue
            trial = at.copy()
            trial[group] = choice.kept[other]
            difference = abs(float(cost(trial)) - now)
            if difference > 0:
                change = float((search(trial) - here).mean())
                yield _Step(group, int(trial[group]), (-change if wider else change) / difference, wider)


def _swaps(
    steps: Sequence[_Step], choices: Sequence[Choices], cost: Cost, target: float, at: Widths
) -> Iterator[Widths]:
    """Widths with the dearest groups wider and the cheapest narrower: one swap, two, four, ..."""
    dear = sorted((step for step in steps if step.wider), key=lambda step: -step.price)
    cheap = sorted((step for step in steps if not step.wider), key=lambda step: step.price)
    for count in _SWAPS:
        if count > len(dear):
            return
        trial, moved = at.copy(), set[int]()
        for step in dear[:count]:
            trial[step.group] = step.kept
            moved.add(step.group)
        for step in cheap:
            if float(cost(trial)) <= target:
                break
            if step.group not in moved and step.price < dear[count - 1].price:
                trial[step.group] = step.kept
        if float(cost(trial)) > target:
            return
        yield widened(choices, cost, trial, target)
