"""Passes over calibration data and adaptive rounding that a killed run does not make again.

Sketches are saved now and then while a long pass goes on. A restarted run reads the same batches, sees by their
checksums that they are the same, and lets the model run on those alone that were not taken in yet: the counters
and sums continue from the very bits that were saved, so that the result is that of one pass.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnx_ir as ir

from quantrim.engines.machine import describe_machine
from quantrim.errors import DataError
from quantrim.files import atomic_path
from quantrim.graph.ports import Feed
from quantrim.journal import Journal, digest, versions
from quantrim.post_training.refine.walk import Rounding, Step
from quantrim.ranges import Sketch
from quantrim.ranges.codes import WeightCodes

#: What numpy raises for files that it did not write, or not to the end.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error)


def sketch_arrays(sketches: Mapping[str, Sketch]) -> dict[str, np.ndarray]:
    """Sketches as arrays of an .npz; counters that are zero take no room."""
    arrays = {"samples_of_tensors": np.array([s.samples for s in sketches.values()])}
    for position, sketch in enumerate(sketches.values()):
        codes = np.flatnonzero(sketch.counts)
        arrays[f"codes_{position}"] = codes.astype(np.uint16)
        arrays[f"counts_{position}"] = sketch.counts[codes]
        arrays[f"ends_{position}"] = np.array([sketch.low, sketch.high, sketch.abs_max_sum], np.float64)
    return arrays


def sketches_of(stored: Mapping[str, Any], names: Iterable[str]) -> dict[str, Sketch]:
    """Sketches that :func:`sketch_arrays` made, by the names of their tensors, in order."""
    return {str(name): _sketch(stored, position) for position, name in enumerate(names)}


def _sketch(stored: Mapping[str, Any], position: int) -> Sketch:
    sketch = Sketch.from_counts(stored[f"codes_{position}"], stored[f"counts_{position}"])
    sketch.low, sketch.high, sketch.abs_max_sum = map(float, stored[f"ends_{position}"])
    sketch.samples = int(stored["samples_of_tensors"][position])
    return sketch


class SavedPass:
    """One pass over the data, saved now and then.

    Args:
        journal: of the run.
        path: gives the file.
        known: checksums of the batches that were taken in before.
        sketches: what they showed.
    """

    def __init__(
        self, journal: Journal, path: Callable[[], Path], known: Sequence[int], sketches: Mapping[str, Sketch]
    ) -> None:
        self._journal, self._path, self._known, self.sketches = journal, path, known, dict(sketches)
        self._seen: list[int] = []

    def has(self, feed: Feed) -> bool:
        """Whether a batch was taken in by the run before; it counts as taken in from now on.

        Raises:
            DataError: the run before saw another batch here.
        """
        place, checksum = len(self._seen), _checksum(feed)
        if place < len(self._known) and self._known[place] != checksum:
            self._refuse()
        self._seen.append(checksum)
        return place < len(self._known)

    def due(self) -> bool:
        """Whether it is time to save."""
        return self._journal.due()

    def save(self, sketches: Mapping[str, Sketch]) -> None:
        """Write what all batches so far have shown."""
        arrays = sketch_arrays(sketches)
        facts = {"tensors": list(sketches), "batches": self._seen}
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        with atomic_path(self._path()) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def end(self, sketches: Mapping[str, Sketch]) -> None:
        """All batches were read; the whole is saved where a part was, or where the run keeps everything.

        Raises:
            DataError: the run before saw more.
        """
        if len(self._seen) < len(self._known):
            self._refuse()
        if self._journal.folder.exists() and len(self._seen) > len(self._known):
            self.save(sketches)

    def _refuse(self) -> None:
        self._path().unlink(missing_ok=True)
        raise DataError(
            "the calibration data are others than when this run was interrupted; what it had saved was "
            "removed. Run it again."
        )


def _checksum(feed: Feed) -> int:
    """CRC-32 of a batch: names, types, shapes and values. It tells data that changed, not an attack."""
    found = 0
    for name, array in feed.items():
        found = zlib.crc32(f"{name}{array.dtype.str}{array.shape}".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


def saved_pass(
    journal: Journal, model: ir.Model, tensors: Iterable[str], kept: Sequence[Feed], *settings: Any
) -> SavedPass:
    """The pass over the data that sketches some tensors of a model, with what a killed run has saved of it.

    Args:
        journal: of the run.
        model: that is run.
        tensors: to sketch, in order.
        kept: the first batches; the saved state of a run that began with others is not used.
        settings: what else the batches depend on.
    """
    names = list(tensors)
    cached: list[str] = []

    def path() -> Path:
        if not cached:  # a short run never asks
            machine = describe_machine()
            where = (versions(), machine.processor, machine.cores)
            cached.append(digest(_model_digest(model), names, settings, where))
        return journal.path(cached[0], ".npz")

    known, sketches = _loaded(path(), names) if journal.folder.exists() else ([], {})
    if not known or known[: len(kept)] != [_checksum(feed) for feed in kept][: len(known)]:
        known, sketches = [], {}
    return SavedPass(journal, path, known, sketches)


def _loaded(path: Path, names: list[str]) -> tuple[list[int], dict[str, Sketch]]:
    if not path.is_file():
        return [], {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(stored["facts"].tobytes())
            if facts["tensors"] != names or not all(type(one) is int for one in facts["batches"]):
                return [], {}
            return facts["batches"], sketches_of(stored, names)
    except UNREADABLE:  # damaged: made anew
        return [], {}


def _model_digest(model: ir.Model) -> str:
    """Of a model's nodes and constants."""
    nodes = (ir.serde.serialize_node(node).SerializeToString() for node in model.graph)
    constants = [(name, value.const_value) for name, value in model.graph.initializers.items()]
    parts = (part for name, value in constants if value is not None for part in (name, value.numpy()))
    return digest(*nodes, *parts)


def remembered(rounding: Rounding, journal: Journal | None) -> Rounding:
    """Adaptive rounding that keeps each layer's codes in a journal, if there is one, once a run is long."""
    if journal is None:
        return rounding
    began = [False]

    def rounded(step: Step) -> WeightCodes:
        if not (began[0] or journal.folder.exists()):
            codes = rounding(step)
            began[0] = journal.due()
            return codes
        given = (step.weight, step.codes.codes, step.codes.scales, *step.inputs, *step.float_outputs)
        path = journal.path(digest("rounding", versions(), *given), ".npy")
        kept = _codes(path, step)
        if kept is not None:
            return kept
        codes = rounding(step)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, codes.codes, allow_pickle=False)
        return codes

    return rounded


def _codes(path: Path, step: Step) -> WeightCodes | None:
    """Codes that were kept; the very ones of the step where rounding left them alone."""
    if not path.is_file():
        return None
    try:
        codes = np.load(path, allow_pickle=False)
    except UNREADABLE:
        return None
    if codes.shape != step.codes.codes.shape or codes.dtype != step.codes.codes.dtype:
        return None
    return step.codes if np.array_equal(codes, step.codes.codes) else replace(step.codes, codes=codes)
