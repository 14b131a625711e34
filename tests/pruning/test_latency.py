"""Milliseconds: predicted from timed layers, then measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.pruning import channel_groups
from quantrim.pruning.cost.cost import full_widths
from quantrim.pruning.cost.latency import Engine, _Table, latency_model
from quantrim.pruning.for_latency import prune_for_latency
from quantrim.pruning.survey import survey


def net() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inner, outer in ((3, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
    return nn.Sequential(*layers, depthwise, nn.ReLU(), nn.Conv2d(64, 4, 1)).eval()


def test_predictions_start_at_what_was_measured_and_follow_the_tables():
    module, x = net(), torch.randn(1, 3, 32, 32)
    graph = channel_groups(module, x)
    model = latency_model(module, x, graph, Engine(repeat=3))
    full = full_widths(graph)
    assert float(model(full)) == pytest.approx(model.full_ms)
    line = np.array([0.0, 1.0, 1e3])
    linear = _Table(line, line, line, line, block=1)
    straight = replace(model, layers=tuple((linear, *rows) for _, *rows in model.layers), moved=())
    whole, half = straight(np.stack([full, full // 2]))
    assert whole > half > 0.2 * whole


def test_widths_out_are_rounded_up_to_the_engines_block():
    line = np.array([0.0, 32.0])
    table = _Table(line, line, line, line, block=16)
    assert table(np.array([32.0]), np.array([17.0])) == table(np.array([32.0]), np.array([32.0])) == 32.0


def test_pruning_for_latency_reports_what_was_measured():
    module, x = net(), torch.randn(1, 3, 64, 64)
    result, before, after = prune_for_latency(
        module, x, 0.4, Engine(repeat=3), surveyed=survey(module, x), attempts=2
    )
    assert result.requested == 0.4
    assert result.achieved == 1 - after / before
    assert result.flops["after"] < 0.8 * result.flops["before"]
    assert all(group.after % 8 == 0 for group in result.groups)
