"""Prepared batches kept on disk: read many times, decoded once, never all in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantrim.graph.ports import samples_in
from quantrim.journal import digest


@dataclass(frozen=True, slots=True)
class Spool:
    """Batches by input name, one file each.

    Attributes:
        names: of the inputs.
        paths: .npz files with the arrays of a batch, in the order of the names.
        sizes: samples of each.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Of names and values of all batches."""
        return digest(self.names, *self.paths)

    @classmethod
    def of(cls, feeds: Iterable[Mapping[str, np.ndarray]], folder: Path) -> Spool:
        """Write batches into a folder."""
        names: tuple[str, ...] = ()
        paths, sizes = [], []
        for index, feed in enumerate(feeds):
            names = tuple(feed)
            paths.append(folder / f"batch_{index}.npz")
            np.savez(paths[-1], *feed.values())
            sizes.append(samples_in(feed))
        return cls(names, tuple(paths), tuple(sizes))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for path in self.paths:
            with np.load(path) as arrays:
                yield {name: arrays[f"arr_{index}"] for index, name in enumerate(self.names)}

    def split(self, samples: int) -> tuple[Spool, Spool]:
        """So many samples, spread evenly over all, and the rest; twice the whole where there is no rest."""
        share = samples / max(1, sum(self.sizes))
        if share >= 1 or len(self.paths) < 2:
            return self, self
        taken = [int((index + 1) * share) > int(index * share) for index in range(len(self.paths))]
        taken[-1] = taken[-1] or not any(taken)
        return self._where(taken, True), self._where(taken, False)

    def _where(self, taken: list[bool], wanted: bool) -> Spool:
        chosen = [index for index, one in enumerate(taken) if one is wanted]
        return Spool(self.names, tuple(self.paths[i] for i in chosen), tuple(self.sizes[i] for i in chosen))
