"""The guide says what works: its code runs, its names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.qat import QATConfig
from quantrim.qat.config import ActivationMethod, WeightMethod
from quantrim.ranges import ESTIMATORS

GUIDE = (Path(__file__).parents[2] / "docs" / "qat.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_python_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(0, 4, (4,))) for _ in range(3)]
    given = {"net": Classifier(), "loader": batches, "criterion": F.cross_entropy}
    exec(compile(BLOCKS[number], f"docs/qat.md block {number}", "exec"), given)


def test_every_setting_and_every_method_stands_in_the_guide():
    for name in QATConfig.__dataclass_fields__:
        assert f"`{name}" in GUIDE or f"{name}=" in GUIDE, name
    for word in (*get_args(ActivationMethod), *get_args(WeightMethod), *ESTIMATORS):
        assert f"`{word}`" in GUIDE, word


@pytest.mark.parametrize("verb", ["qat", "quant"])
def test_every_option_of_the_commands_in_the_guide_exists(verb: str):
    line = next(line for line in GUIDE.splitlines() if line.startswith(f"quantrim {verb} "))
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
    for option in re.findall(r"--[a-z-]+", line):
        assert option in shown, option
