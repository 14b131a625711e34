"""Residual blocks that may go as a whole: without their weights they hand on what they receive.

A block whose parameters are all zero and that then is the identity can be replaced by one. Whether it is shows
in one run of the block on what it receives; the whole model has to agree as for channels. In the solver a block
is a group of one unit, and everything in it costs nothing once that unit is gone.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantrim.modules import in_mode
from quantrim.pruning.groups.check import Checker
from quantrim.pruning.groups.groups import ChannelGraph, ChannelGroup
from quantrim.pruning.groups.trial import Trial
from quantrim.pruning.groups.walk import Member


def with_blocks(graph: ChannelGraph, checker: Checker) -> ChannelGraph:
    """The graph with a group for every residual block whose removal is exact.

    Args:
        graph: of the module that the checker holds.
        checker: of it.
    """
    paths = _silent_identities(checker)
    if not paths:
        return graph
    first = len(graph.group_of_slot) - 1  # the last entry is no slot's
    groups = tuple(_group(path) for path in paths)
    numbers = np.arange(len(graph.groups), len(graph.groups) + len(paths), dtype=np.int64)
    whole = replace(
        graph,
        groups=(*graph.groups, *groups),
        group_of_slot=np.concatenate([graph.group_of_slot[:-1], numbers, [-1]]),
        blocks={path: first + number for number, path in enumerate(paths)},
    )
    return Trial(whole, {group.name: np.zeros(1, dtype=np.int64) for group in groups}, checker).settled()


def _group(path: str) -> ChannelGroup:
    member = Member(path, 0)
    return ChannelGroup(f"{path} (block)", {member: np.zeros((1, 1), dtype=np.int64)}, {member: "block"}, True)


def _silent_identities(checker: Checker) -> list[str]:
    """Innermost modules of one input that are the identity when all of their parameters are zero."""
    received: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            if plain and args[0].shape == output.shape:
                received.setdefault(path, args[0].clone())

        return hook

    layers = {path: layer for path, layer in checker.module.named_modules() if path and _may_be_block(layer)}
    handles = [layer.register_forward_hook(keep(path), with_kwargs=True) for path, layer in layers.items()]
    arguments = checker.arguments
    try:
        with in_mode(checker.module, training=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            checker.module(*arguments[0], **arguments[1])
            found = [path for path in received if _hands_on(layers[path], received[path])]
    finally:
        for handle in handles:
            handle.remove()
    return [path for path in found if not any(other.startswith(f"{path}.") for other in found)]


def _may_be_block(layer: nn.Module) -> bool:
    """Whether a module has weights and is no plain layer of torch's."""
    plain = type(layer).__module__.startswith("torch.nn") and not any(True for _ in layer.children())
    return not plain and any(True for _ in layer.parameters())


def _hands_on(layer: nn.Module, received: Tensor) -> bool:
    silent = copy.deepcopy(layer)
    for parameter in silent.parameters():
        parameter.zero_()
    return torch.allclose(silent(received), received, rtol=1e-9, atol=1e-12)
