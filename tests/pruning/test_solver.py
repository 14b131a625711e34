"""Widths: allowed ones, the price rule against exhaustive search, the original's threshold rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.pruning import ChannelGroup, Limits
from quantrim.pruning.cost.solver import (
    Choices,
    allowed_units,
    by_threshold,
    expected_loss,
    fitted,
    solve,
    tightened,
    uniform,
    widened,
)
from quantrim.pruning.groups.walk import Member
from quantrim.pruning.sensitivity.criteria import loss_of_magnitude


def group(units: int, channels_of_unit: int = 1, name: str = "layer") -> ChannelGroup:
    member = Member(f"{name}.weight", 0)
    rows = np.arange(units * channels_of_unit).reshape(channels_of_unit, units).T
    return ChannelGroup(name, {member: rows}, {member: "out"}, False)


@pytest.mark.parametrize(
    ("units", "per_unit", "limits", "expected"),
    [
        (32, 1, Limits(8, 8), [32, 24, 16, 8]),
        (36, 1, Limits(8, 8), [36, 32, 24, 16, 8]),
        (8, 1, Limits(8, 8), [8]),
        (16, 2, Limits(8, 8), [16, 12, 8, 4]),
        (8, 4, Limits(8, 8), [8, 6, 4, 2]),
        (5, 1, Limits(1, 1, max_ratio=1.0), [5, 4, 3, 2, 1]),
        (40, 1, Limits(8, 1, max_ratio=0.5), [40, 32, 24]),
    ],
)
def test_allowed_widths_are_aligned_and_never_empty(units, per_unit, limits, expected):
    assert allowed_units(group(units, per_unit), limits).tolist() == expected


def bilinear(constants: np.ndarray):
    """A chain of layers: each product of neighbouring widths costs."""

    def cost(kept: np.ndarray) -> np.ndarray:
        kept = np.asarray(kept, dtype=np.float64)
        ends = np.concatenate(
            [np.full((*kept.shape[:-1], 1), 3.0), kept, np.full((*kept.shape[:-1], 1), 4.0)], -1
        )
        return (ends[..., :-1] * ends[..., 1:]) @ constants

    return cost


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.1, 0.8))
def test_target_is_met_at_little_more_than_the_least_loss(seed: int, ratio: float):
    generator = np.random.default_rng(seed)
    kept = np.array([8, 6, 4, 2])
    choices = [
        Choices(kept, np.concatenate([[0.0], np.cumsum(np.sort(generator.random(3)))])) for _ in range(3)
    ]
    cost = bilinear(generator.random(4) + 0.1)
    target = float(cost(np.full(3, 8))) * (1 - ratio)
    feasible = [
        sum(choice.loss[i] for choice, i in zip(choices, picks, strict=True))
        for picks in itertools.product(range(4), repeat=3)
        if cost(np.array([kept[i] for i in picks])) <= target
    ]
    solution = solve(choices, cost, target)
    assert solution.reached == bool(feasible)
    if feasible:
        assert cost(solution.kept) <= target * (1 + 1e-9)
        assert min(feasible) - 1e-9 <= solution.loss <= min(feasible) * 1.8 + 0.5


def test_steps_that_save_nothing_are_skipped():
    # latency falls at 4 only: 6 would lose without saving
    choices = [Choices(np.array([8, 6, 4]), np.array([0.0, 1.0, 2.0]))]
    cost = lambda kept: np.where(np.asarray(kept)[..., 0] > 4, 10.0, 5.0)  # noqa: E731
    assert solve(choices, cost, 8.0).kept.tolist() == [4]


def test_threshold_rule_is_the_originals():
    # one group loses linearly 0..0.9, the other ten times as much; the common threshold gives 0.5 and 0.05
    ratios = [0.1 * i for i in range(1, 10)]
    curves = {"cheap": (ratios, ratios), "dear": (ratios, [10 * r for r in ratios])}
    groups = [group(100, name="cheap"), group(100, name="dear")]
    cost = lambda kept: np.asarray(kept, dtype=float).sum(-1)  # noqa: E731
    solution = by_threshold(curves, groups, Limits(1, 1), cost, 150.0)
    assert solution.reached
    assert solution.kept.tolist() == [50, 100]  # below the first measured point nothing is removed
    assert solution.loss == pytest.approx(0.5, abs=0.01)


def test_threshold_reaches_beyond_the_last_share_measured():
    curves = {"a": ([0.5], [0.1]), "b": ([0.5], [0.2])}
    cost = lambda kept: np.asarray(kept, dtype=float).sum(-1)  # noqa: E731
    solution = by_threshold(
        curves, [group(100, name="a"), group(100, name="b")], Limits(1, 1, 0.95), cost, 20.0
    )
    assert solution.reached


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_given_back_stays_within_the_target_and_loses_less(data):
    count = data.draw(st.integers(1, 4))
    choices = []
    for _ in range(count):
        kept = np.array(sorted(data.draw(st.sets(st.integers(1, 12), min_size=1, max_size=5)), reverse=True))
        steps = data.draw(st.lists(st.floats(0, 2), min_size=len(kept) - 1, max_size=len(kept) - 1))
        choices.append(Choices(kept, np.cumsum([0.0, *steps])))
    weights = np.array(data.draw(st.lists(st.floats(0.1, 3), min_size=count, max_size=count)))
    cost = lambda kept: np.asarray(kept, dtype=float) @ weights  # noqa: E731
    least = np.array([choice.kept[-1] for choice in choices])
    full = np.array([choice.kept[0] for choice in choices])
    target = float(cost(least)) + data.draw(st.floats(0, 1)) * float(cost(full) - cost(least))
    wide, tight = widened(choices, cost, least, target), tightened(choices, cost, least, target)
    for found in (wide, tight):
        assert float(cost(found)) <= target + 1e-9
        assert expected_loss(choices, found) <= expected_loss(choices, least) + 1e-9
    assert expected_loss(choices, tight) <= expected_loss(choices, wide) + 1e-9
    for number, choice in enumerate(choices):  # no single group could have more
        for more in choice.kept[choice.kept > wide[number]]:
            trial = wide.copy()
            trial[number] = more
            assert float(cost(trial)) > target
    alike = fitted(choices, cost, full.astype(float), target)
    assert alike is None or float(cost(alike)) <= target + 1e-9


def test_uniform_takes_the_nearest_allowed_width():
    assert uniform([group(32), group(8), group(20)], Limits(8, 8), 0.5).tolist() == [16, 8, 8]


def test_loss_of_magnitude_grows_with_the_share_that_goes():
    loss = loss_of_magnitude(np.array([4.0, 1.0, 2.0, 1.0]), np.array([4, 3, 2, 1]))
    assert loss == pytest.approx([0.0, -np.log(7 / 8), -np.log(6 / 8), -np.log(4 / 8)])
