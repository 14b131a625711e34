"""Where accuracy falls off: how many answers of the pruned model are still those of the unpruned one.

Losses say which widths are better, not whether anything is left. Answers (the class of an image or of a pixel)
do: where fewer than half are still the same, retraining starts nearly anew, and the ratio up to which they stay
is looked for by bisection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from quantrim.modules import in_mode
from quantrim.pruning.choose import Task, choose
from quantrim.pruning.sensitivity.probe import Probe, error_rate, first_tensor
from quantrim.pruning.together import Together, Widths, statistics_hold

#: Share of answers below which accuracy counts as collapsed.
_HALF = 0.5
#: Halvings of the ratio asked for, and no smaller ratio is tried.
_HALVINGS = 3


@dataclass(frozen=True, slots=True)
class Cliff:
    """Answers that stay.

    Attributes:
        same: share of the answers that are those of the unpruned model, before any retraining.
        asked: the ratio that they were counted at.
        before: largest ratio tried at which at least half of them stay; None where they do at the one asked.
    """

    same: float
    asked: float
    before: float | None = None

    @property
    def collapsed(self) -> bool:
        """Whether fewer than half stay."""
        return self.same < _HALF

    def sentence(self) -> str:
        """For people."""
        told = f"{self.same:.0%} of the answers at ratio {self.asked:.2f} are those of the unpruned model"
        if self.before is None:
            return told
        return f"{told}: accuracy collapses beyond {self.before:.2f}; ask for less, or prune in several rounds"


def answers_kept(task: Task, kept: Widths) -> Cliff | None:
    """How many answers stay, and from which ratio on they don't.

    Args:
        task: with a probe; its module is not pruned yet.
        kept: widths chosen for it.

    Returns:
        None where there is no probe, or the model returns no classes.
    """
    probe = None if task.known.probe is None else _answers(task.module, task.known.probe)
    if probe is None or task.known.probe is None:
        return None
    statistics = statistics_hold(task.module, task.known.probe)
    search = Together(task.module, task.graph.groups, task.scores, probe, recalibrate=statistics)
    same, asked = 1 - float(search(kept).mean()), task.config.share
    if same >= _HALF or task.config.of_channels:
        return Cliff(same, asked)
    low, high = 0.0, asked
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        config, known = replace(task.config, ratio=middle), replace(task.known, probe=None)
        losses = search(choose(replace(task, config=config, known=known)).kept)
        low, high = (middle, high) if 1 - float(losses.mean()) >= _HALF else (low, middle)
    return Cliff(same, asked, low)


def _answers(module: nn.Module, probe: Probe) -> Probe | None:
    """The same inputs with the classes that the unpruned model tells, and how many are told otherwise."""
    batches = []
    with in_mode(module, training=False), torch.no_grad():
        for inputs, _ in probe.batches:
            outputs = first_tensor(module(inputs))
            if outputs.ndim < 2 or outputs.shape[1] < 2 or not outputs.is_floating_point():
                return None
            batches.append((inputs, outputs.argmax(1)))
    return Probe(tuple(batches), error_rate)
