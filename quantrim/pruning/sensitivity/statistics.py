"""Running statistics of batch norms, measured anew after channels went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantrim.modules import in_mode


class _Tally:
    """Mean and variance of all values that reached a norm, channel by channel, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = self.squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Count values (N, C, ...)."""
        dims = [dim for dim in range(values.ndim) if dim != 1]
        variance, mean = torch.var_mean(values, dims, correction=0)
        count = values.numel() // values.shape[1]
        self.count += count
        self.sums = self.sums.to(values.device) + count * mean.double()
        self.squares = self.squares.to(values.device) + count * (variance.double() + mean.double() ** 2)

    def write(self, layer: Any) -> None:
        """Put the statistics into a norm; one that saw nothing keeps those that it has."""
        if self.count < 2:
            return
        mean = self.sums / self.count
        variance = (self.squares / self.count - mean**2).clamp_min(0) * self.count / (self.count - 1)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)


def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the running statistics of batch norms anew, over all values of some batches.

    Pruning shifts what reaches a norm; fresh statistics win back much of what was lost, without training. A
    norm that is reached by a single value a channel, as behind global pooling of one image, can't tell a
    variance: it leaves such batches out and keeps its statistics where there are no others.

    Args:
        module: the model; only its running statistics change.
        batches: inputs (N, ...), with as much variety as the training data.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    tallies = {layer: _Tally() for layer in norms}
    momenta = {layer: layer.momentum for layer in norms}
    handles = [layer.register_forward_pre_hook(_counting(tallies[layer]), with_kwargs=True) for layer in norms]
    try:
        with in_mode(module, training=False), torch.no_grad():
            for layer in norms:
                layer.momentum = 0.0  # running statistics stay until all is counted
            for batch in batches:
                module(batch)
            for layer, tally in tallies.items():
                tally.write(layer)
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum


@contextmanager
def own_statistics(module: nn.Module) -> Iterator[None]:
    """The module with batch norms that normalise each batch by itself, in one pass.

    On batches of many samples that is what measuring the running statistics anew would give; those stay.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    momenta = {layer: layer.momentum for layer in norms}
    handles = [layer.register_forward_pre_hook(_counting(None), with_kwargs=True) for layer in norms]
    try:
        with in_mode(module, training=False):
            for layer in norms:
                layer.momentum = 0.0
            yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _counting(tally: _Tally | None) -> Callable[..., None]:
    """Hook that lets a norm take a batch's own statistics where there are any, and counts the values."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = args[0] if args else next(iter(kwargs.values()))
        layer.training = values.numel() > values.shape[1]
        if layer.training and tally is not None:
            tally.add(values)

    return hook
