"""What version 0.1 wrote before rooms and classes got other names still loads, and answers the same."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from quantrim.checkpoints import read_state
from quantrim.pruning import load_pruned
from quantrim.qat import QAT

FILES = Path(__file__).parent / "data" / "version_0_1"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def answers(name: str) -> torch.Tensor:
    return torch.load(FILES / "answers.pth", weights_only=True)[name]


def test_a_pruned_model_loads_with_its_plan() -> None:
    model = load_pruned(net(), FILES)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), answers("pruned"))


def test_the_state_of_a_quantized_module_loads() -> None:
    qat = QAT(net(), images())
    qat.module.load_state_dict(read_state(FILES / "qat.pth"), strict=True)
    qat.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(qat.module(images()), answers("quantized"))
