"""Calibration in parts: shards of the data are sketched wherever they lie, and added up exactly.

Counters of bfloat16 codes add, so that the sketches of all shards are those of one pass, bit for bit. Shard i
of n takes samples i, i + n, i + 2n, ...; the first few of each travel along, in their order, for what needs
real samples: refinement, the verdict, the race.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.errors import ConfigError, DataError
from quantrim.files import absence, atomic_path
from quantrim.graph import graph_from_onnx, normalize, read_onnx
from quantrim.graph.feeds import IMAGENET, KEPT_SAMPLES, ImagePreprocess, calibration_feeds
from quantrim.graph.ports import Feed, fill_shape, input_ports
from quantrim.journal import Journal
from quantrim.placement import place
from quantrim.post_training.calibrate import collect
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.resume import UNREADABLE, saved_pass, sketch_arrays, sketches_of
from quantrim.ranges import Sketch

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard of the calibration data showed.

    Attributes:
        key: hash of the model and of the shape that it ran at.
        index: which shard, from 0.
        count: of how many.
        sketches: statistics by tensor.
        kept: the shard's first samples, one a feed.
        samples: how many samples were seen.
        asked: how many all shards were to see; None for all there are.
    """

    key: str
    index: int
    count: int
    sketches: Mapping[str, Sketch]
    kept: tuple[Feed, ...]
    samples: int
    asked: int | None


@dataclass(frozen=True, slots=True)
class Sketches:
    """The sum of all shards; calibration data for :func:`quantrim.post_training.ptq`.

    Attributes:
        key: as of every shard.
        sketches: statistics by tensor.
        kept: the first samples of the whole, one a feed, in order.
        samples: how many samples were seen.
    """

    key: str
    sketches: Mapping[str, Sketch]
    kept: tuple[Feed, ...]
    samples: int

    @classmethod
    def merge(cls, shards: Sequence[Shard]) -> Sketches:
        """Add shards up.

        Raises:
            DataError: none, shards of different models, settings or counts, or a shard is missing.
        """
        if not shards:
            raise DataError("no shard was given; give all parts that calibration wrote.")
        first = shards[0]
        if any((one.key, one.count, one.asked) != (first.key, first.count, first.asked) for one in shards):
            raise DataError("the shards are of different models, settings, samples or numbers of shards.")
        by_index = {one.index: one for one in shards}
        missing = [str(index) for index in range(first.count) if index not in by_index]
        if missing:
            raise DataError(f"shard {', '.join(missing)} of {first.count} is missing. Calibrate it, too.")
        ordered = [by_index[index] for index in range(first.count)]
        sketches = dict(ordered[0].sketches)
        for one in ordered[1:]:
            sketches = {name: sketch.merge(one.sketches[name]) for name, sketch in sketches.items()}
        longest = max(len(one.kept) for one in ordered)
        kept = [one.kept[turn] for turn in range(longest) for one in ordered if turn < len(one.kept)]
        return cls(first.key, sketches, tuple(kept[:KEPT_SAMPLES]), sum(one.samples for one in ordered))

    def __iter__(self) -> Iterator[Feed]:
        """No batch is left to run."""
        return iter(())

    def of(self, tensors: Iterable[str]) -> dict[str, Sketch]:
        """Statistics of some tensors.

        Raises:
            DataError: one was not watched, since the shards were made with other settings.
        """
        names = list(tensors)
        unknown = [name for name in names if name not in self.sketches]
        if unknown:
            raise DataError(
                f"the shards hold no statistics of {unknown[0]!r}; they were made for another target. "
                "Calibrate for the target of quantization."
            )
        return {name: self.sketches[name] for name in names}


def calibrate_shard(
    model: str | Path,
    data: Any,
    config: PtqConfig,
    index: int,
    count: int,
    *,
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray] = IMAGENET,
    on_batch: Callable[[int], None] | None = None,
    journal: Journal | None = None,
) -> Shard:
    """Sketch a shard of the calibration data.

    Args:
        model: .onnx file.
        data: all of the calibration data, the same for every shard.
        config: its target decides which tensors are watched; samples counts those of all shards.
        index: which shard, 0 .. count - 1.
        count: number of shards.
        preprocess: for image files.
        on_batch: called with the number of samples of each batch.
        journal: what a killed run had sketched, and what this one does.

    Raises:
        ConfigError: index and count don't fit.
        ModelError, DataError: as of :func:`quantrim.post_training.ptq`.
    """
    if not 0 <= index < count:
        raise ConfigError(f"shard {index}/{count}: of {count} shards the last is {count - 1}.", field="shard")
    original = read_onnx(model)
    ports = input_ports(original)
    if config.input_shape is not None:
        fill_shape(ports[0], 1, config.input_shape)
    feeds = calibration_feeds(
        data,
        ports,
        samples=config.samples,
        batch_size=config.batch_size,
        preprocess=preprocess,
        shape=config.input_shape,
        shard=(index, count),
        seed=config.seed,
    )
    normalized = normalize(original)
    kept: list[Feed] = []
    wanted, seen = -(-KEPT_SAMPLES // count), 0
    first = next(feeds)
    graph = graph_from_onnx(normalized, first)
    plan = place(graph, config.rules)

    def counted() -> Iterator[Feed]:
        nonlocal seen
        for feed in chain([first], feeds):
            size = len(next(iter(feed.values())))
            seen += size
            rows = range(max(0, min(size, wanted - len(kept))))
            kept.extend({name: array[row : row + 1] for name, array in feed.items()} for row in rows)
            yield feed

    saved = None if journal is None else saved_pass(journal, normalized, plan.groups, [first])
    sketches = collect(normalized, plan.groups, counted(), shapes=graph.shapes, on_batch=on_batch, saved=saved)
    return Shard(shards_key(model, config), index, count, sketches, tuple(kept), seen, config.samples)


def shards_key(model: str | Path, config: PtqConfig) -> str:
    """What shards must have in common: the model's bytes, and the shape that it ran at."""
    digest = hashlib.sha256(Path(model).read_bytes())
    digest.update(repr((_FORMAT, config.input_shape)).encode())
    return digest.hexdigest()


def require_made_for(sketches: Sketches, model: Path, config: PtqConfig) -> None:
    """Refuse shards of another model or of other settings.

    Raises:
        DataError: the model or its input shape differs.
        ConfigError: equalisation changes the weights, so that it needs the data anew.
    """
    if sketches.key != shards_key(model, config):
        raise DataError(
            f"{model}: the shards were made of another model, or with other target, op_types or skip."
        )
    if "equalize" in config.refinements:
        raise ConfigError("refinements: 'equalize' needs the data, not their sketches.", field="refinements")


def save_shard(shard: Shard, path: str | Path) -> None:
    """Write a shard as .npz, atomically."""
    names = list(shard.sketches)
    arrays = sketch_arrays(shard.sketches)
    inputs = list(shard.kept[0]) if shard.kept else []
    for position, feed in enumerate(shard.kept):
        arrays |= {f"kept_{position}_{place}": feed[name] for place, name in enumerate(inputs)}
    facts = {
        "format": _FORMAT, "key": shard.key, "index": shard.index, "count": shard.count,
        "samples": shard.samples, "asked": shard.asked, "tensors": names, "inputs": inputs,
        "kept": len(shard.kept),
    }  # fmt: skip
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_shard(path: str | Path) -> Shard:
    """Read a shard.

    Raises:
        DataError: the file is missing, damaged, or no shard of this version.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {absence(path)}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(stored["facts"].tobytes())
            if facts["format"] != _FORMAT:
                raise DataError(f"{path}: a shard of another version ({facts['format']}). Calibrate it again.")
            sketches = sketches_of(stored, facts["tensors"])
            kept = tuple(
                {name: stored[f"kept_{turn}_{place}"] for place, name in enumerate(facts["inputs"])}
                for turn in range(facts["kept"])
            )
    except UNREADABLE as error:
        raise DataError(f"{path}: not a shard of calibration, or a damaged one. Calibrate it again.") from error
    return Shard(facts["key"], facts["index"], facts["count"], sketches, kept, facts["samples"], facts["asked"])
