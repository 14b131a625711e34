"""Nets that break dependency analyses: quantrim beside Torch-Pruning.

    python benchmarks/prune_adversarial.py

Each net (tests/prune/adversarial.py) is pruned by half of every group. A pruned model must compute what the
model computes with the same channels zeroed, in double precision. For Torch-Pruning the channels are those that
its groups name; its own pruner removes them. Nets whose norms run over the pruned channels change their
statistics rightly; there only that the pruned model runs is asked.
"""

from __future__ import annotations

import copy
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantrim.engines.machine import describe_machine
from quantrim.errors import QuantrimError
from quantrim.pruning import Limits, prune
from quantrim.pruning.groups.groups import joined
from quantrim.pruning.groups.walk import Member
from quantrim.pruning.surgery import zero

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "prune"))
from adversarial import CASES, EXAMPLE, Case

_NORMS = (nn.GroupNorm, nn.LayerNorm)
#: Seconds that the peer gets for a net; ours takes one or two.
_PATIENCE = 30


def outputs(module: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(module.eval()(EXAMPLE.double()))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def difference(masked: nn.Module, pruned: nn.Module) -> str:
    """How a pruned model compares with the masked one."""
    try:
        got = outputs(pruned)
    except Exception as error:
        return f"fails: {str(error).splitlines()[0][:60]}"
    if any(isinstance(layer, _NORMS) for layer in pruned.modules()):
        return "runs"
    expected = outputs(masked)
    worst = max(
        float((a - b).abs().max() / a.abs().max()) if a.shape == b.shape else float("inf")
        for a, b in zip(expected, got, strict=True)
    )
    return "exact" if worst < 1e-9 else f"wrong by {worst:.0e}"


def removed(before: nn.Module, after: nn.Module) -> float:
    count = [sum(p.numel() for p in one.parameters()) for one in (before, after)]
    return 1 - count[1] / count[0]


def ours(case: Case) -> str:
    module = case.build().double().eval()
    pruned, masked = copy.deepcopy(module), copy.deepcopy(module)
    try:
        result = prune(pruned, EXAMPLE.double(), channel_ratio=0.5, limits=Limits(1, 1))
    except QuantrimError as error:
        return f"refused: {error}"
    zero(masked, result.plan.removal)
    told = sorted({f.reason for f in result.frozen if "output of the model" not in f.reason})
    why = f"; stays: {told[0][:70]}" if told else ""
    return f"{difference(masked, pruned)}, {removed(module, pruned):.0%} removed{why}"


def theirs(case: Case) -> str:
    module = case.build().double().eval()
    pruned, masked = copy.deepcopy(module), copy.deepcopy(module)
    last = [layer for layer in pruned.modules() if hasattr(layer, "weight")][-1]
    names = {id(layer): name for name, layer in pruned.named_modules()}
    signal.alarm(_PATIENCE)
    try:
        pruner = tp.pruner.BasePruner(
            pruned, EXAMPLE.double(), tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
            ignored_layers=[getattr(pruned, "head", last)],
        )  # fmt: skip
        removals = []
        for group in pruner.step(interactive=True):
            removals.append(removal_of(group, names))
            group.prune()
    except TimeoutError:
        return f"not done after {_PATIENCE} s"
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
    finally:
        signal.alarm(0)
    if not removals:
        return "removes nothing"
    try:
        zero(masked, joined(removals))
    except (KeyError, IndexError, RuntimeError) as error:
        return f"removes positions that are not there ({error})"
    return f"{difference(masked, pruned)}, {removed(module, pruned):.0%} removed"


def removal_of(group: Any, names: dict[int, str]) -> dict[Member, Any]:
    """Positions that a group of Torch-Pruning removes, by dimension of a parameter."""
    found: dict[Member, list[int]] = {}
    for dependency, positions in group:
        layer, kind = dependency.target.module, dependency.handler.__name__
        if not isinstance(layer, nn.Module) or not any(True for _ in layer.parameters(recurse=False)):
            continue
        for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            if tensor.ndim == 0:
                continue
            dim = int("in_channels" in kind and tensor.ndim > 1 and not depthwise(layer))
            if tensor.ndim == 1 and "in_channels" in kind and isinstance(layer, nn.Conv2d | nn.Linear):
                continue  # a bias follows the outputs
            inner = (
                [p % tensor.shape[1] for p in positions] if dim == 1 else positions
            )  # grouped: within a group
            found.setdefault(Member(f"{names[id(layer)]}.{name}", dim), []).extend(inner)
    return {member: torch.tensor(sorted(set(at))).numpy() for member, at in found.items()}


def depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels


def _too_long(*_: Any) -> None:
    raise TimeoutError


def main() -> None:
    signal.signal(signal.SIGALRM, _too_long)
    print(describe_machine().to_json())
    print(f"Torch-Pruning {tp.__version__}\n\n| net | quantrim | Torch-Pruning |\n|---|---|---|")
    for name, case in CASES.items():
        torch.manual_seed(0)
        state = torch.get_rng_state()
        mine = ours(case)
        torch.set_rng_state(state)
        print(f"| {name} | {mine} | {theirs(case)} |", flush=True)


if __name__ == "__main__":
    main()
