"""What several parts ask of any nn.Module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """The module in a mode; the modes of all its submodules return afterwards."""
    modes = {inner: inner.training for inner in module.modules()}
    try:
        module.train(training)
        yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones under each of their names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))
