"""Losses of a module with some units masked, sample by sample, on a small fixed set."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from quantrim.modules import named_tensors
from quantrim.pruning.groups.groups import ChannelGroup, Removal
from quantrim.pruning.sensitivity.prefix import PrefixGraph
from quantrim.pruning.sensitivity.probe import Losses, Probe, direct_losses, joined_losses
from quantrim.pruning.sensitivity.statistics import recalibrate_batch_norm
from quantrim.pruning.surgery import remove, zero


@contextmanager
def masked(module: nn.Module, removal: Removal) -> Iterator[None]:
    """The module with positions set to zero; their values return afterwards."""
    tensors = named_tensors(module)
    touched = {member.tensor for member in removal} & tensors.keys()
    saved = {name: tensors[name].detach().clone() for name in touched}
    try:
        zero(module, removal)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                tensors[name].copy_(value)


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
        return np.concatenate(list(self.portions(group, removal)))

    def portions(
        self, group: ChannelGroup | None = None, removal: Removal | None = None
    ) -> Generator[Losses, None, None]:
        """The same, some samples at a time; close the generator to leave out the rest."""
        if group is None or removal is None:
            yield from self._portions_of(self.module)
        elif group.normalised:  # zeros would stay in the statistics
            smaller = copy.deepcopy(self.module)
            remove(smaller, removal)
            yield self._whole(smaller)
        else:
            if self.graph is not None:
                self.graph.advance(_tensors_of(group))
            with masked(self.module, removal):
                yield from self._portions_of(self.module)

    def _portions_of(self, module: nn.Module) -> Iterator[Losses]:
        if self.graph is None:
            yield self._whole(module)
            return
        targets = (target for _, target in self.probe.batches)
        with torch.no_grad():
            for portion in self.graph.portions():
                yield joined_losses(self.probe.losses_of(outputs, next(targets)) for outputs in portion)

    def _whole(self, module: nn.Module) -> Losses:
        """All samples by the module's own forward."""
        if not self.recalibrate:
            return direct_losses(module, self.probe)
        kept: Mapping[str, Tensor] = {name: value.clone() for name, value in module.named_buffers()}
        try:
            recalibrate_batch_norm(module, (inputs for inputs, _ in self.probe.batches))
            return direct_losses(module, self.probe)
        finally:
            for name, value in module.named_buffers():
                value.copy_(kept[name])


def _tensors_of(group: ChannelGroup) -> set[str]:
    return {member.tensor for member in group.members}
