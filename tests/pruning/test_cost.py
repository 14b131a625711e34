"""Costs are predicted exactly, before anything is removed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.pruning import Limits, channel_groups, prune
from quantrim.pruning.cost.cost import full_widths, macs_model
from quantrim.vision.models import BiSeNetV2, FastSCNN, MobileNetV1, profile, resnet18

MODELS = {
    "bisenetv2": lambda: BiSeNetV2(4),
    "fast_scnn": lambda: FastSCNN(4),
    "mobilenet_v1": lambda: MobileNetV1(num_classes=10),
    "resnet18": lambda: resnet18(num_classes=10),
}


@pytest.mark.parametrize("name", MODELS)
def test_macs_before_and_after_are_those_of_torchs_counter(name: str):
    torch.manual_seed(0)
    module, x = MODELS[name]().eval(), torch.randn(1, 3, 64, 64)
    graph = channel_groups(module, x, check=False)
    cost = macs_model(graph)
    assert float(cost(full_widths(graph))) == profile(module, x.shape).macs
    result = prune(module, x, ratio=0.3)
    assert result.flops["after"] == 2 * profile(module, x.shape).macs
    assert result.params["after"] == sum(p.numel() for p in module.parameters())
    assert result.achieved == pytest.approx(1 - result.flops["after"] / result.flops["before"])
    assert 0.3 <= result.achieved < 0.36
    assert all(group.after % 8 == 0 or group.after == group.before for group in result.groups)


def test_attention_and_matrix_products_are_counted():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(torch.matmul(y, torch.matmul(y.transpose(1, 2), y)))

    graph = channel_groups(Net(), torch.randn(2, 5, 6), check=False)
    # two linear layers on 2 x 5 rows, and twice 2 x 5 x 16 x 16
    assert float(macs_model(graph)(full_widths(graph))) == 10 * 6 * 16 * 2 + 2 * 2 * 5 * 16 * 16


def test_costs_of_many_choices_come_at_once():
    graph = channel_groups(MODELS["resnet18"](), torch.randn(1, 3, 32, 32), check=False)
    cost, full = macs_model(graph), full_widths(graph)
    choices = np.stack([full, full // 2, np.ones_like(full)])
    assert cost(choices).tolist() == [float(cost(one)) for one in choices]


def test_widths_reached_are_limited_from_below():
    module = resnet18(num_classes=10)
    result = prune(module, torch.randn(1, 3, 32, 32), ratio=0.9, limits=Limits(8, 16))
    assert min(group.after for group in result.groups) >= 16
