"""Integer slots for channels, and the classes that union-find makes of them.

A slot is one position of one tensor dimension: entry 5 of ``conv1.weight`` along dimension 0. Two slots are
tied when removing one forces removing the other. The classes of tied slots are the units that can be pruned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

#: Slot numbers of the positions along one dimension, int64[size].
ChannelIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Classes:
    """ChannelIds joined to classes.

    Attributes:
        of_slot: class of each slot, int64[slots].
        reasons: why a class may not be removed, by class; the reason given first wins.
    """

    of_slot: ChannelIds
    reasons: dict[int, str]


class SlotSpace:
    """Gives out slots, and records which are tied and which are frozen."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[ChannelIds, ChannelIds]] = []
        self._frozen: list[tuple[ChannelIds, str]] = []

    def new(self, size: int) -> ChannelIds:
        """Fresh slots for a dimension of ``size`` positions."""
        slots = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return slots

    def tie(self, first: ChannelIds, second: ChannelIds) -> None:
        """Tie equal positions of two arrays of the same shape."""
        if first.shape != second.shape:
            raise ValueError(f"slots of shapes {first.shape} and {second.shape} can't be tied")
        self._ties.append((first.ravel(), second.ravel()))

    def tie_rows(self, slots: ChannelIds) -> None:
        """Tie all slots of each column of ``slots``, int64[rows, columns]: equal parts of one dimension."""
        for row in slots[1:]:
            self.tie(slots[0], row)

    def freeze(self, slots: ChannelIds, reason: str) -> None:
        """Forbid the removal of these slots and of all that is tied to them."""
        self._frozen.append((slots.ravel(), reason))

    def solve(self) -> Classes:
        """Connected components of the ties (``scipy.sparse.csgraph``, linear in slots and ties)."""
        first, second = (_joined(side) for side in (zip(*self._ties, strict=True) if self._ties else ([], [])))
        ones = np.ones(len(first), dtype=np.int8)
        graph = coo_matrix((ones, (first, second)), shape=(self.count, self.count))
        _, labels = connected_components(graph, directed=False)
        of_slot = labels.astype(np.int64)
        reasons: dict[int, str] = {}
        for slots, reason in self._frozen:
            for label in np.unique(of_slot[slots]):
                reasons.setdefault(int(label), reason)
        return Classes(of_slot, reasons)


def _joined(arrays: Iterable[ChannelIds]) -> ChannelIds:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])
