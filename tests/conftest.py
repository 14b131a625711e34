"""Small real models and data that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.graph.from_torch import export_onnx

torch.set_num_threads(1)


class Residual(nn.Module):
    """Stem, a depthwise-separable residual block, pooling and a classifier: every rule in miniature."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(self.pool(x).mean((2, 3)))


def settled(module: nn.Module, size: int = 32, seed: int = 0) -> nn.Module:
    """The module in eval mode, with batch-norm statistics of random images."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.3)
    module.train()(torch.randn(16, 3, size, size, generator=generator))
    return module.eval()


@pytest.fixture(scope="session")
def residual_net() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


@pytest.fixture(scope="session")
def residual_onnx(residual_net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "residual.onnx"
    export_onnx(residual_net, torch.randn(1, 3, 32, 32), path, input_names=["image"], output_names=["logits"])
    return path


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)
