"""How many units each group keeps, so that the cost falls to a target at the least loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantrim.errors import ConfigError
from quantrim.pruning.groups.groups import ChannelGroup

#: Cost of kept units, float64[...] from int64[..., groups].
Cost = Callable[[NDArray[np.int64]], NDArray[np.float64]]
#: A share of the cost so small may be left unused.
_CLOSE = 0.01
#: Most widths that are considered for one group.
_MOST_CHOICES = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What widths are allowed.

    Attributes:
        align: kept channels of a group are a multiple of this.
        min_channels: groups of so few channels are left alone, and none falls below.
        max_ratio: largest share of a group that may be removed, in (0, 1].
        blocks: whole residual blocks may go too; only where their loss is measured.

    Raises:
        ConfigError: a field holds what is not allowed.
    """

    align: int = 8
    min_channels: int = 8
    max_ratio: float = 0.9
    blocks: bool = False

    def __post_init__(self) -> None:
        for name in ("align", "min_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, it is {getattr(self, name)}.", field=name)
        if not 0 < self.max_ratio <= 1:
            raise ConfigError(f"max_ratio must be in (0, 1], it is {self.max_ratio}.", field="max_ratio")


@dataclass(frozen=True, slots=True)
class Choices:
    """Widths of one group.

    Attributes:
        kept: units, falling from all of them, int64[choices].
        loss: expected loss of each, 0 for all units, never falling.
    """

    kept: NDArray[np.int64]
    loss: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver chose.

    Attributes:
        kept: units of each group, int64[groups].
        cost: what they cost.
        loss: sum of the expected losses.
        reached: whether the cost is at or below the target.
    """

    kept: NDArray[np.int64]
    cost: float
    loss: float
    reached: bool


def allowed_units(group: ChannelGroup, limits: Limits) -> NDArray[np.int64]:
    """Numbers of units that a group may keep, falling, all of them first."""
    if group.is_block:
        return np.arange(1, -1 if limits.blocks else 0, -1, dtype=np.int64)
    step = limits.align // math.gcd(limits.align, group.channels_of_unit)
    least = max(
        1,
        math.ceil(limits.min_channels / group.channels_of_unit),
        math.ceil(group.units * (1 - limits.max_ratio) - 1e-9),
    )
    below = np.arange(group.units - 1, least - 1, -1, dtype=np.int64)
    below = below[below % step == 0]
    if len(below) > _MOST_CHOICES:
        below = below[np.unique(np.linspace(0, len(below) - 1, _MOST_CHOICES).round().astype(int))]
    return np.concatenate([[group.units], below])


def least_units(groups: Sequence[ChannelGroup], limits: Limits) -> NDArray[np.int64]:
    """The least number of units that each group may keep, int64[groups]."""
    return np.array([allowed_units(group, limits)[-1] for group in groups], dtype=np.int64)


def solve(choices: Sequence[Choices], cost: Cost, target: float) -> Solution:
    """Shrink, again and again, the group that loses least for each piece of cost saved.

    A step may skip widths that save nothing, so that staircases of latency are climbed whole. Savings are
    counted at the widths reached so far, since a layer's cost is a product of what it reads and makes. The last
    step goes no further than the target.

    Args:
        choices: for each group.
        cost: cost of the units kept.
        target: to reach.
    """
    search = _Search(choices, cost)
    while search.cost_now > target and search.shrink(target):
        pass
    return Solution(search.kept, search.cost_now, search.loss(), search.cost_now <= target * (1 + 1e-9))


@dataclass(frozen=True, slots=True)
class _Step:
    """A next width of a group: its index, and loss for each piece of cost saved."""

    index: int
    price: float


class _Search:
    """Widths reached so far, and the best next step of each group that has one."""

    def __init__(self, choices: Sequence[Choices], cost: Cost) -> None:
        self.choices, self.cost = choices, cost
        self.at = np.zeros(len(choices), dtype=np.int64)
        self.kept = np.array([choice.kept[0] for choice in choices], dtype=np.int64)
        self.cost_now = float(cost(self.kept))
        self.steps: dict[int, _Step] = {}
        for group in range(len(choices)):
            self._refresh(group)

    def loss(self) -> float:
        """Expected loss of the widths reached."""
        return sum(float(choice.loss[index]) for choice, index in zip(self.choices, self.at, strict=True))

    def shrink(self, target: float) -> bool:
        """Take the cheapest step, no further than the target; False where there is none."""
        group = self._cheapest()
        if group is None:
            return False
        start, end = int(self.at[group]) + 1, self.steps[group].index
        reaching = np.flatnonzero(self._costs_of(group)[: end - start + 1] <= target)
        self.at[group] = start + int(reaching[0]) if len(reaching) else end
        self.kept[group] = self.choices[group].kept[self.at[group]]
        self.cost_now = float(self.cost(self.kept))
        self._refresh(group)
        return True

    def _cheapest(self) -> int | None:
        """The group with the lowest price, computed anew until it stays the lowest.

        Removing channels elsewhere lowers savings, hence raises prices: an old price is a lower bound.
        """
        while self.steps:
            group = min(self.steps, key=lambda one: self.steps[one].price)
            self._refresh(group)
            others = (step.price for one, step in self.steps.items() if one != group)
            if group in self.steps and self.steps[group].price <= min(others, default=math.inf):
                return group
        return None

    def _costs_of(self, group: int) -> NDArray[np.float64]:
        """Cost with each of the smaller widths of a group, the others as they are."""
        rest = self.choices[group].kept[int(self.at[group]) + 1 :]
        trial = np.repeat(self.kept[None], len(rest), axis=0)
        trial[:, group] = rest
        return self.cost(trial)

    def _refresh(self, group: int) -> None:
        self.steps.pop(group, None)
        choice, start = self.choices[group], int(self.at[group])
        if start + 1 == len(choice.kept):
            return
        saved = self.cost_now - self._costs_of(group)
        lost = choice.loss[start + 1 :] - choice.loss[start]
        prices = np.where(saved > 0, lost / np.where(saved > 0, saved, 1.0), np.inf)
        best = int(np.argmin(prices))
        if np.isfinite(prices[best]):
            self.steps[group] = _Step(start + 1 + best, float(prices[best]))


def widened(
    choices: Sequence[Choices], cost: Cost, kept: NDArray[np.int64], target: float
) -> NDArray[np.int64]:
    """Give back what was removed beyond the target: again and again where it brings most for its cost.

    Args:
        choices: for each group.
        cost: cost of the units kept.
        kept: units to start from, each one of its group's choices, int64[groups].
        target: not to be passed.
    """
    kept = kept.copy()
    while True:
        best: tuple[float, float, int, int] | None = None
        now = float(cost(kept))
        for group, choice in enumerate(choices):
            wider = choice.kept[choice.kept > kept[group]]
            if not len(wider):
                continue
            trial = np.repeat(kept[None], len(wider), axis=0)
            trial[:, group] = wider
            added = cost(trial) - now
            gained = float(choice.loss[len(wider)]) - choice.loss[: len(wider)]
            for index in np.flatnonzero(now + added <= target):
                step = float(gained[index] / max(added[index], 1e-12)), float(added[index])
                if best is None or step > best[:2]:
                    best = *step, group, int(wider[index])
        if best is None:
            return kept
        kept[best[2]] = best[3]


def tightened(
    choices: Sequence[Choices], cost: Cost, kept: NDArray[np.int64], target: float
) -> NDArray[np.int64]:
    """Come closer to a target from below, by one group narrower and others wider, where that loses no more."""
    kept = widened(choices, cost, kept, target)
    full = float(cost(np.array([choice.kept[0] for choice in choices], dtype=np.int64)))
    for _ in range(len(choices)):
        if target - float(cost(kept)) <= _CLOSE * full:
            break
        trials = [widened(choices, cost, one, target) for one in _narrower(choices, kept)]
        losses = [expected_loss(choices, trial) for trial in trials]
        best = int(np.argmin(losses)) if trials else -1
        if best < 0 or losses[best] >= expected_loss(choices, kept):
            break
        kept = trials[best]
    return kept


def _narrower(choices: Sequence[Choices], kept: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Widths with one group a step narrower, for each group that has one."""
    for group, choice in enumerate(choices):
        below = choice.kept[choice.kept < kept[group]]
        if len(below):
            trial = kept.copy()
            trial[group] = below[0]
            yield trial


def expected_loss(choices: Sequence[Choices], kept: NDArray[np.int64]) -> float:
    """Sum of the expected losses of widths that are among the choices."""
    return sum(float(c.loss[np.flatnonzero(c.kept == k)[0]]) for c, k in zip(choices, kept, strict=True))


def fitted(
    choices: Sequence[Choices], cost: Cost, shape: NDArray[np.float64], target: float
) -> NDArray[np.int64] | None:
    """Widths in these proportions at a target, given back what rounding took; None where it can't be reached.

    Args:
        choices: for each group.
        cost: cost of the units kept.
        shape: widths that are scaled together, float64[groups]; those of the whole model cut all groups alike.
        target: not to be passed.
    """

    def kept_at(scale: float) -> NDArray[np.int64]:
        scales = (scale if choice.kept[-1] else 1.0 for choice in choices)  # blocks stay as they are
        wanted = [one * width for one, width in zip(scales, shape, strict=True)]
        return np.array([c.kept[np.argmin(np.abs(c.kept - w))] for c, w in zip(choices, wanted, strict=True)])

    low, high = 0.0, 2.0
    if float(cost(kept_at(low))) > target:
        return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(cost(kept_at(middle))) <= target else (low, middle)
    return widened(choices, cost, kept_at(low), target)


def uniform(groups: Sequence[ChannelGroup], limits: Limits, ratio: float) -> NDArray[np.int64]:
    """Units kept when the same share goes from every group: the allowed width nearest to it."""
    kept = []
    for group in groups:
        allowed = allowed_units(group, limits)
        wanted = group.units * (1.0 if group.is_block else 1 - ratio)
        kept.append(int(allowed[np.argmin(np.abs(allowed - wanted))]))
    return np.array(kept, dtype=np.int64)


def by_threshold(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    groups: Sequence[ChannelGroup],
    limits: Limits,
    cost: Cost,
    target: float,
) -> Solution:
    """PaddleSlim's choice: one loss threshold for all groups, bisected until the cost meets the target.

    Each group gives up the largest share whose loss is at most the threshold, by linear interpolation; beyond
    the last share measured the loss goes on as steeply as before it.

    Args:
        curves: shares removed, rising, and the loss of each, by group.
        groups: all groups.
        limits: allowed widths; the nearest one is taken.
        cost: cost of the units kept.
        target: to reach.
    """
    of_blocks = {group.name for group in groups if group.is_block}  # they stay
    curves = {name: _continued(*curve) for name, curve in curves.items() if name not in of_blocks}
    low = min((min(losses) for _, losses in curves.values()), default=0.0)
    high = max((max(losses) for _, losses in curves.values()), default=0.0)
    allowed = [allowed_units(group, limits) for group in groups]

    def kept_at(threshold: float) -> NDArray[np.int64]:
        wanted = [
            g.units * (1 - _admissible(*curves[g.name], threshold))
            if g.name in curves and not g.is_block
            else g.units
            for g in groups
        ]
        return np.array([a[np.argmin(np.abs(a - w))] for a, w in zip(allowed, wanted, strict=True)])

    for _ in range(40):
        middle = (low + high) / 2
        if float(cost(kept_at(middle))) > target:
            low = middle
        else:
            high = middle
    kept = kept_at(high)
    reached = float(cost(kept))
    return Solution(kept, reached, high, reached <= target * (1 + 1e-9))


def _continued(ratios: Sequence[float], losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """A curve that goes on to all of a group."""
    first, last = (0.0, 0.0), (ratios[-1], losses[-1])
    before = (ratios[-2], losses[-2]) if len(ratios) > 1 else first
    slope = max((last[1] - before[1]) / max(last[0] - before[0], 1e-9), last[1] / max(last[0], 1e-9), 1e-9)
    end = [] if ratios[-1] >= 1 else [(1.0, last[1] + (1 - last[0]) * slope)]
    points = [*zip(ratios, losses, strict=True), *end]
    return [ratio for ratio, _ in points], [loss for _, loss in points]


def _admissible(ratios: Sequence[float], losses: Sequence[float], threshold: float) -> float:
    for index in range(len(ratios) - 1, -1, -1):
        if losses[index] <= threshold:
            if index == len(ratios) - 1:
                return ratios[index]
            slope = (ratios[index + 1] - ratios[index]) / (losses[index + 1] - losses[index])
            return ratios[index] + (threshold - losses[index]) * slope
    return 0.0
