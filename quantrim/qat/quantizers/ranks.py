"""Ranges that are observed by several processes at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import distributed, nn

from quantrim.qat.config import RankRanges


def merge_ranges(quantizers: Iterable[nn.Module], how: RankRanges) -> None:
    """Give every process the same observed ranges, by one collective for all quantizers.

    A step starts from the same averages on every rank, and an average moves with what is observed; so the
    largest (or the mean) of the moved averages is the average of the largest (or the mean) range of all ranks.

    Args:
        quantizers: activation quantizers, in the same order on every rank.
        how: "first" leaves each process its own, so that DistributedDataParallel hands out rank 0's; "max"
            covers what any rank has seen; "mean" averages.
    """
    if how == "first" or not (distributed.is_available() and distributed.is_initialized()):
        return
    ends = [(_sign(name), buffer) for quantizer in quantizers for name, buffer in quantizer.named_buffers()]
    ends = [(sign, buffer) for sign, buffer in ends if sign]
    if not ends or distributed.get_world_size() == 1:
        return
    flat = torch.cat([sign * buffer.reshape(-1) for sign, buffer in ends])
    distributed.all_reduce(flat, distributed.ReduceOp.MAX if how == "max" else distributed.ReduceOp.SUM)
    if how == "mean":
        flat /= distributed.get_world_size()
    place = 0
    for sign, buffer in ends:
        buffer.copy_(sign * flat[place : place + buffer.numel()].reshape(buffer.shape))
        place += buffer.numel()


def _sign(name: str) -> int:
    """1 for upper ends of ranges, -1 for lower ones, so that the widest is the largest; 0 for other state."""
    kind = name.rpartition(".")[2]
    return {"high": 1, "highs": 1, "low": -1, "lows": -1}.get(kind, 0)
