"""A resumed run goes on with the rates of the schedule that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from quantrim.vision.checkpoint import RunState, load_checkpoint, save_checkpoint


def run(steps: int, total: int, rate: float) -> tuple[nn.Module, torch.optim.Optimizer, LambdaLR, list[float]]:
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9)
    schedule = LambdaLR(optimizer, lambda iteration: max(0.0, 1 - iteration / total))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    return module, optimizer, schedule, rates


@pytest.mark.parametrize(("total", "rate"), [(4, 0.1), (8, 0.1), (8, 0.5)])
def test_a_resumed_run_has_the_rates_of_the_schedule_asked_for(total: int, rate: float, tmp_path: Path):
    module, optimizer, schedule, _ = run(4, 4, 0.1)
    save_checkpoint(tmp_path, module, optimizer, schedule, RunState(iteration=4))
    again, memory, resumed, _ = run(0, total, rate)
    assert load_checkpoint(tmp_path, again, memory, resumed).iteration == 4
    wanted = run(8, total, rate)[3][4:] if total == 8 else [0.0] * 4
    found = []
    for _ in range(4):
        found.append(memory.param_groups[0]["lr"])
        memory.step()
        resumed.step()
    assert found == wanted
    assert all("momentum_buffer" in state for state in memory.state.values())


def test_a_history_with_a_value_a_class_resumes(tmp_path: Path):
    module, optimizer, schedule, _ = run(2, 4, 0.1)
    history = [{"iteration": 2, "loss": 0.5}, {"iteration": 2, "mIoU": 0.4, "class_iou": [0.3, 0.5]}]
    save_checkpoint(tmp_path, module, optimizer, schedule, RunState(iteration=2, history=history))
    assert load_checkpoint(tmp_path, *run(0, 4, 0.1)[:3]).history == history
