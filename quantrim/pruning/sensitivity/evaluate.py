"""Losses of a module with some units masked, sample by sample, on a small fixed set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from quantrim.errors import ModelError
from quantrim.modules import in_mode, named_tensors
from quantrim.pruning.groups.groups import ChannelGroup, Removal
from quantrim.pruning.sensitivity.prefix import PrefixGraph
from quantrim.pruning.surgery import remove, zero

#: Loss of each sample, float64[samples].
Losses = NDArray[np.float64]


def cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    """Mean cross entropy of each sample.

    Args:
        outputs: logits (N, C, ...), or a list or mapping of them whose first counts.
        target: class numbers (N, ...), 255 where nothing is known.

    Returns:
        float[N].
    """
    logits = first_tensor(outputs)
    losses = F.cross_entropy(logits, target.long(), ignore_index=255, reduction="none")
    known = target != 255
    return _by_sample(losses).sum(1) / _by_sample(known).sum(1).clamp_min(1)


def mean_cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy of a module on a batch of inputs and class numbers, with gradients; a scalar."""
    inputs, target = batch
    return cross_entropy(module(inputs), target).mean()


def _by_sample(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def divergence(outputs: Any, reference: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each sample's outputs from reference logits; needs no labels.

    Args:
        outputs: logits (N, C, ...), or a list or mapping of them whose first counts.
        reference: logits of the unpruned model, of the same shape.

    Returns:
        float[N].
    """
    ours, theirs = F.log_softmax(first_tensor(outputs), 1), F.log_softmax(reference, 1)
    return _by_sample(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)).mean(1)


def first_tensor(outputs: Any) -> Tensor:
    """The first tensor of whatever a model returns."""
    return next(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


@dataclass(frozen=True, slots=True)
class Probe:
    """A small fixed set on which losses are compared.

    Attributes:
        batches: pairs of inputs (N, ...) and targets.
        losses: outputs and targets → loss of each sample; a function that can be imported, where the work is
            spread over processes.
    """

    batches: tuple[tuple[Tensor, Tensor], ...]
    losses: Callable[[Any, Tensor], Tensor] = cross_entropy

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(len(inputs) for inputs, _ in self.batches)


def probe_without_labels(module: nn.Module, inputs: Iterable[Tensor]) -> Probe:
    """Probe that asks how far outputs move from those of the unpruned model."""
    with in_mode(module, training=False), torch.no_grad():
        batches = [(batch, first_tensor(module(batch)).clone()) for batch in inputs]
    return Probe(tuple(batches), divergence)


@contextmanager
def masked(module: nn.Module, removal: Removal) -> Iterator[None]:
    """The module with positions set to zero; their values return afterwards."""
    tensors = named_tensors(module)
    saved = {name: tensors[name].detach().clone() for name in {member.tensor for member in removal}}
    try:
        zero(module, removal)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                tensors[name].copy_(value)


def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the running statistics of batch norms anew, as plain averages over some batches.

    Pruning shifts what reaches a norm; fresh statistics win back much of what was lost, without training.

    Args:
        module: the model; only its running statistics change.
        batches: inputs (N, ...), with as much variety as the training data.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    momenta = {layer: layer.momentum for layer in norms}
    try:
        with in_mode(module, training=False), torch.no_grad():
            for layer in norms:
                layer.reset_running_stats()
                layer.momentum = None  # cumulative average
                layer.training = True
            for batch in batches:
                module(batch)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum


class MaskedEvaluator:
    """Evaluates a module with units masked, from the first layer that the mask touches where it can.

    Ask for groups in the order of the network: what lies before a group is computed once for all its masks.

    Args:
        module: the model; in evaluation mode on return, otherwise as it was.
        probe: what it is run on.
        recalibrate: measure batch norm statistics anew under each mask, as will be done after pruning; costs a
            second pass where the module can't be exported whole.
        cache_mb: most memory for the tensors that cross a cut.
    """

    def __init__(
        self, module: nn.Module, probe: Probe, *, recalibrate: bool = False, cache_mb: float = 512.0
    ) -> None:
        self.module, self.probe, self.recalibrate = module.eval(), probe, recalibrate
        shapes = {inputs.shape for inputs, _ in probe.batches}
        inputs = [inputs for inputs, _ in probe.batches]
        self.graph = PrefixGraph.of(module, inputs, cache_mb, recalibrate) if len(shapes) == 1 else None

    def order(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """Groups in the order of the network."""
        if self.graph is None:
            return list(groups)
        graph = self.graph
        return sorted(groups, key=lambda group: graph.first_use(_tensors_of(group)))

    def losses(self, group: ChannelGroup | None = None, removal: Removal | None = None) -> Losses:
        """Loss of each sample, with a removal from one group masked."""
        if group is None or removal is None:
            return self._with(self.module) if self.graph is None else self._by_graph(self.graph)
        if group.normalised:  # zeros would stay in the statistics
            smaller = copy.deepcopy(self.module)
            remove(smaller, removal)
            return self._with(smaller)
        if self.graph is not None:
            self.graph.advance(_tensors_of(group))
            with masked(self.module, removal):
                return self._by_graph(self.graph)
        with masked(self.module, removal):
            return self._with(self.module)

    def _by_graph(self, graph: PrefixGraph) -> Losses:
        with torch.no_grad():
            return _joined(
                self.probe.losses(outputs, target)
                for outputs, (_, target) in zip(graph.outputs(), self.probe.batches, strict=True)
            )

    def _with(self, module: nn.Module) -> Losses:
        if not self.recalibrate:
            return direct_losses(module, self.probe)
        kept: Mapping[str, Tensor] = {name: value.clone() for name, value in module.named_buffers()}
        try:
            recalibrate_batch_norm(module, (inputs for inputs, _ in self.probe.batches))
            return direct_losses(module, self.probe)
        finally:
            for name, value in module.named_buffers():
                value.copy_(kept[name])


def direct_losses(module: nn.Module, probe: Probe) -> Losses:
    """Loss of each sample, by the module's own forward."""
    with torch.no_grad():
        return _joined(probe.losses(module(inputs), target) for inputs, target in probe.batches)


def _joined(parts: Iterable[Tensor]) -> Losses:
    collected = [part.detach().double().cpu().numpy() for part in parts]
    if not collected:
        raise ModelError("the probe has no batch; pass at least one.")
    losses = np.concatenate(collected)
    if not np.isfinite(losses).all():
        losses = np.nan_to_num(losses, nan=1e4, posinf=1e4, neginf=-1e4)
    return losses


def _tensors_of(group: ChannelGroup) -> set[str]:
    return {member.tensor for member in group.members}
