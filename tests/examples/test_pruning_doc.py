"""The guide to pruning says what works: its code runs, its options and criteria are all there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.cli import app
from quantrim.errors import ModelError
from quantrim.pruning import CRITERIA

GUIDE = (Path(__file__).parents[2] / "docs" / "pruning.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


def options() -> set[str]:
    command = typer.main.get_command(app).commands["prune"]  # type: ignore[attr-defined]
    spelled = {word for option in command.params for word in (*option.opts, *option.secondary_opts)}
    return {word for word in spelled if word.startswith("--") and "_" not in word} - {"--help"}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_python_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = Classifier()
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(0, 4, (4,))) for _ in range(3)]
    given = {
        "net": net,
        "build": Classifier,
        "loader": batches,
        "criterion": F.cross_entropy,
        "optimizer": torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
    }
    try:
        exec(compile(BLOCKS[number], f"docs/pruning.md block {number}", "exec"), given)
    except ModelError as error:  # milliseconds of so small a net are noise on a busy machine
        if "prune_for_latency" not in BLOCKS[number] or "can't be reached" not in str(error):
            raise
        pytest.skip(str(error))


def test_every_option_stands_in_the_guide_and_exists():
    written = set(re.findall(r"--[a-z][a-z_-]+", GUIDE.partition("## Python")[0]))
    assert options() <= written
    assert {word for word in written if "_" not in word} <= options() | {"--data"}  # of ptq


def test_every_criterion_stands_in_the_guide():
    assert all(f"`{name}`" in GUIDE for name in CRITERIA)
