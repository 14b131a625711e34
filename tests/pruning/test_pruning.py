"""The one call: requests, targets, criteria, and the self-check's last word."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from adversarial import CASES, EXAMPLE
from test_sensitivity import job_of
from torch import Tensor, nn

from quantrim.errors import ConfigError, ModelError
from quantrim.pruning import CRITERIA, Examples, Known, Limits, Probe, PruneConfig, measure, prune, survey
from quantrim.pruning.choose import Task, choices_of, choose
from quantrim.pruning.cost.cost import macs_model
from quantrim.pruning.cost.solver import fitted
from quantrim.pruning.together import Together, statistics_hold

ANY_WIDTH = Limits(align=1, min_channels=1)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float):
    with pytest.raises(ConfigError, match=r"in \(0, 1\)"):
        prune(CASES["flip"].build(), EXAMPLE, ratio=ratio)


def test_one_of_the_two_ratios_is_given():
    for options in ({}, {"ratio": 0.3, "channel_ratio": 0.3}):
        with pytest.raises(ConfigError, match="either ratio"):
            prune(CASES["flip"].build(), EXAMPLE, **options)


def test_a_target_out_of_reach_is_said_and_nothing_is_changed():
    module = CASES["flip"].build()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ModelError, match=r"ratio 0.9 can't be reached: at most 0\.\d+"):
        prune(module, EXAMPLE, ratio=0.9)
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_exactly(criterion: str):
    torch.manual_seed(0)
    module = CASES["c2f"].build()
    examples = Examples([EXAMPLE], lambda model, x: model(x).square().mean())
    result = prune(module, EXAMPLE, ratio=0.3, criterion=criterion, examples=examples, limits=ANY_WIDTH)
    assert 0.3 <= result.achieved < 0.45
    assert module(EXAMPLE).shape == (2, 4, 16, 16)


def test_channel_ratio_takes_the_same_share_of_every_group():
    module = CASES["c2f"].build()
    result = prune(module, EXAMPLE, channel_ratio=0.5, limits=Limits(1, 1))
    assert all(group.after == group.before // 2 for group in result.groups)
    assert result.achieved == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["marginal", "threshold"])
def test_measured_sensitivity_decides(method):
    torch.manual_seed(0)
    job = job_of(CASES["c2f"].build())
    with torch.no_grad():
        job.module.m2[0].weight.zero_()  # silent: costs nothing to remove
        job.module.m2[1].weight.zero_()
        job.module.m2[1].bias.zero_()
    sensitivity = measure(job)
    result = prune(job.module, EXAMPLE, ratio=0.1, sensitivity=sensitivity, method=method, limits=ANY_WIDTH)
    widths = {group.name: group.after / group.before for group in result.groups}
    assert widths.pop("m2.0") < min(widths.values())


def test_widths_chosen_together_are_no_worse_than_any_start():
    torch.manual_seed(0)
    job = job_of(CASES["c2f"].build(), (32, 3, 16, 16))
    looked = survey(job.module, EXAMPLE, limits=ANY_WIDTH)
    sensitivity = measure(job)
    search = Together(job.module, looked.graph.groups, job.scores, job.probe)
    config, known = PruneConfig(ratio=0.4, limits=ANY_WIDTH), Known(sensitivity=sensitivity, probe=job.probe)
    task = Task(job.module, looked.graph, job.scores, macs_model(looked.graph), config, known)
    alone, plain = (choose(replace(task, known=known)) for known in (Known(sensitivity=sensitivity), Known()))
    found = choose(task)
    full = np.array([group.units for group in looked.graph.groups])
    even = fitted(choices_of(task), task.cost, full.astype(float), 0.6 * float(task.cost(full)))
    losses = [float(search(kept).mean()) for kept in (found.kept, alone.kept, plain.kept, even)]
    assert losses[0] == min(losses)
    assert found.loss == pytest.approx(losses[0] - float(search(full).mean()), abs=1e-6)
    assert found.cost <= 0.6 * float(task.cost(full))


def test_statistics_are_not_measured_on_too_few_samples():
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(16))
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), pooled, nn.Linear(16, 4))
    x, y = torch.randn(600, 3, 8, 8), torch.randint(0, 4, (600,))
    x += y[:, None, None, None] * 0.5
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    assert statistics_hold(net, Probe([(x, y)]))
    ordered = y.argsort()[:24]  # all of one class: nothing like the training data
    assert not statistics_hold(net, Probe([(x[ordered], y[ordered])]))
    assert not statistics_hold(nn.Conv2d(3, 4, 1), Probe([(x, y)]))


def test_more_than_was_asked_for_is_told():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    with pytest.warns(UserWarning, match=r"0\.30 was asked for and 0\.50 removed"):
        prune(net, EXAMPLE, ratio=0.3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("ratio", 1.5), ("channel_ratio", 0.0), ("criterion", "l3"), ("method", "magic")],
)
def test_requests_are_checked_where_they_are_made(field: str, value: object):
    with pytest.raises(ConfigError) as caught:
        PruneConfig(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(("field", "value"), [("align", 0), ("min_channels", 0), ("max_ratio", 1.5)])
def test_limits_are_checked_where_they_are_made(field: str, value: float):
    with pytest.raises(ConfigError) as caught:
        Limits(**{field: value})
    assert caught.value.field == field


def test_threshold_needs_a_sensitivity():
    with pytest.raises(ConfigError, match="needs a sensitivity"):
        prune(CASES["c2f"].build(), EXAMPLE, ratio=0.3, method="threshold")


def test_a_branch_that_only_some_widths_take_is_found_when_it_matters():
    class Branch(nn.Module):
        """Twelve channels are taken another way; half of them, which is tried first, are not."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 1), nn.Conv2d(64, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.head(self.b(y.flip(1) if y.size(1) == 12 else y))

    torch.manual_seed(0)
    module = Branch()
    limits = Limits(align=4, min_channels=12)
    result = prune(module, EXAMPLE, channel_ratio=0.25, limits=limits)
    assert module.a.out_channels == 16
    assert module.b.out_channels == 48
    assert any(f.layer == "a" and "depends on a size" in f.reason for f in result.frozen)


def test_survey_tells_the_range_before_any_work():
    looked = survey(CASES["c2f"].build(), EXAMPLE, limits=ANY_WIDTH)
    value = looked.to_json()
    assert 0.8 < value["largest_ratio"] < 1
    assert {"layer": "cv1.0", "channels": 16, "units": 8} in value["prunable"]
    assert value["frozen"] == [{"layer": "head", "reason": "an output of the model", "channels": 4}]


def test_a_silent_branch_does_not_hide_a_mistake():
    """Norm weights that start at zero would let any mistake pass a comparison of the weights as they are."""

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            side = self.side(x)
            side = side if side.size(1) == 16 else side.flip(1)
            return self.head(x + self.norm(side))

    looked = survey(Silent(), EXAMPLE, limits=ANY_WIDTH)
    assert not looked.graph.groups
    assert "depends on a size" in looked.graph.frozen[-1].reason


def test_half_precision_models_are_pruned_too():
    module = CASES["c2f"].build().bfloat16()
    prune(module, EXAMPLE.bfloat16(), ratio=0.3, limits=ANY_WIDTH)
    assert module.cv1[0].weight.dtype == torch.bfloat16
