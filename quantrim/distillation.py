"""Distillation: the float model teaches the quantized one, by its logits and by features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Distillation:
    """Settings.

    Attributes:
        weight: factor of the loss on logits.
        temperature: both softmaxes are taken of logits / temperature; says nothing to detectors.
        features: paths of modules whose outputs are to be alike.
        feature_weight: factor of the loss on features.
    """

    weight: float = 1.0
    temperature: float = 2.0
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0


def distillation_loss(student: Any, teacher: Any, temperature: float = 2.0) -> Tensor:
    """Cross entropy between the softened outputs, times the squared temperature (Hinton et al., 2015).

    Args:
        student: logits (N, C, ...), or a list or dict of them; of a list the teacher's length counts, so that
            auxiliary heads learn from the labels alone.
        teacher: the same of the teacher.
        temperature: softening, positive.
    """
    pairs = list(zip(_logits(student), _logits(teacher), strict=False))
    losses = [
        F.kl_div(
            F.log_softmax(ours / temperature, dim=1),
            F.log_softmax(theirs.detach() / temperature, dim=1),
            reduction="none",
            log_target=True,
        )
        .sum(dim=1)
        .mean()
        for ours, theirs in pairs
    ]
    return torch.stack(losses).mean() * temperature**2


def feature_loss(student: Iterable[Tensor], teacher: Iterable[Tensor]) -> Tensor:
    """Mean squared distance of features, each relative to the teacher's power."""
    losses = [
        (ours - theirs).square().mean() / theirs.square().mean().clamp_min(1e-8)
        for ours, theirs in zip(student, (t.detach() for t in teacher), strict=True)
    ]
    return torch.stack(losses).mean()


class Distiller:
    """Loss of a student against a frozen teacher; call it after the student's forward.

    Args:
        student: module in training.
        teacher: float module; it is put into evaluation mode and gets no gradients.
        settings: what to compare.
        compare: loss of (outputs, teacher's outputs); :func:`distillation_loss` by default.

    Raises:
        ConfigError: a feature is no module of student or teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: Distillation | None = None,
        compare: Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        self.settings = settings or Distillation()
        self.compare = compare or partial(distillation_loss, temperature=self.settings.temperature)
        self.teacher = teacher.eval().requires_grad_(False)
        self.kept: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self.handles = [
            _module(root, path).register_forward_hook(_keeper(kept, path))
            for root, kept in zip((student, teacher), self.kept, strict=True)
            for path in self.settings.features
        ]

    def __call__(self, outputs: Any, *inputs: Any) -> Tensor:
        """Distillation loss.

        Args:
            outputs: what the student has just returned for these inputs.
            inputs: inputs of the teacher's forward.
        """
        with torch.no_grad():
            expected = self.teacher(*inputs)
        return self.loss(outputs, expected)

    def loss(self, outputs: Any, expected: Any) -> Tensor:
        """Distillation loss of outputs that student and teacher have just returned for the same inputs."""
        settings = self.settings
        loss = settings.weight * self.compare(outputs, expected)
        if settings.features:
            ours, theirs = ([kept[path] for path in settings.features] for kept in self.kept)
            _require_alike(settings.features, ours, theirs)
            loss = loss + settings.feature_weight * feature_loss(ours, theirs)
        for kept in self.kept:
            kept.clear()
        return loss

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()


def _require_alike(paths: Iterable[str], ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for path, one, other in zip(paths, ours, theirs, strict=True):
        if one.shape != other.shape:
            raise ConfigError(
                f"feature {path!r} is {tuple(one.shape)}, the teacher's is {tuple(other.shape)}: its width was "
                "pruned. Compare one whose width stayed, or the outputs alone."
            )


def _module(root: nn.Module, path: str) -> nn.Module:
    modules = dict(root.named_modules())
    if path not in modules:
        raise ConfigError(
            f"feature {path!r} is no module of {type(root).__name__}{did_you_mean(path, modules)}"
        )
    return modules[path]


def _keeper(kept: dict[str, Tensor], path: str) -> Any:
    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept[path] = output

    return keep


def _logits(outputs: Any) -> list[Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
