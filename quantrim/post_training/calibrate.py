"""Run the float model once over the calibration data and sketch every tensor that gets a quantizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import chain

import numpy as np
import onnx_ir as ir

from quantrim.graph.ports import Feed, samples_in
from quantrim.graph.segments import Segments
from quantrim.placement.plan import Plan
from quantrim.post_training.refine.means import InputMeans
from quantrim.post_training.resume import SavedPass
from quantrim.ranges import ActivationScale, Algo, Range, Sketch, activation_scale, range_of

Progress = Callable[[int], None]


def collect(
    model: ir.Model,
    tensors: Iterable[str],
    feeds: Iterable[Feed],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int | None = None,
    means: InputMeans | None = None,
    on_batch: Progress | None = None,
    saved: SavedPass | None = None,
) -> dict[str, Sketch]:
    """Sketch of each tensor over all batches; memory does not grow with their number.

    With ``shapes``, it does not grow with the number of tensors either: large models run segment by segment.

    The counters are filled in a thread of their own while the model already runs on the next batch.

    Args:
        model: float model.
        tensors: names of the tensors to watch.
        feeds: batches by input name.
        shapes: shapes of the tensors for one batch, as in ``Graph.shapes``.
        threads: threads of the forward pass; None for all cores.
        means: takes in the first batches, too.
        on_batch: called with the number of samples of each batch that was taken in.
        saved: what a killed run has taken in already; it gets what this one does.

    Raises:
        DataError: a tensor holds NaN or infinite values; or the batches are not those of the killed run.
        ModelError: ONNX Runtime can't load the model.
    """
    sketches = {tensor: Sketch() for tensor in tensors} | (saved.sketches if saved is not None else {})
    segments = Segments(model, sketches, shapes, threads=threads)
    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        for index, feed in enumerate(feeds):
            if saved is not None and saved.has(feed):
                continue
            given = {name: array for name, array in feed.items() if name in sketches}
            for values in chain([given], segments.run(feed)):
                if pending is not None:
                    pending.result()
                pending = pool.submit(_take_in, sketches, values, means, index)
            if on_batch is not None:
                on_batch(samples_in(feed))
            if saved is not None and pending is not None and saved.due():
                pending.result()
                saved.save(sketches)
        if pending is not None:
            pending.result()
    if saved is not None:
        saved.end(sketches)
    return sketches


def _take_in(
    sketches: Mapping[str, Sketch],
    values: Mapping[str, np.ndarray],
    means: InputMeans | None,
    batch: int,
) -> None:
    for name, array in values.items():
        sketches[name].add(array, name=name)
    if means is not None:
        means.add(batch, values)


def tensor_ranges(
    plan: Plan,
    sketches: Mapping[str, Sketch],
    algo: Algo,
    *,
    hist_percent: float,
    overrides: Sequence[tuple[str, Algo]] = (),
) -> dict[str, Range]:
    """Range of every quantized tensor; the tensors of a scale group share the union of theirs.

    Args:
        plan: where quantizers stand.
        sketches: statistics by tensor.
        algo: range estimator.
        hist_percent: share kept by "hist".
        overrides: (glob on tensor names, estimator) pairs; the first that matches wins.
    """
    groups: dict[str, Range] = {}
    for tensor, group in plan.groups.items():
        chosen = next((a for glob, a in overrides if fnmatchcase(tensor, glob)), algo)
        found = range_of(sketches[tensor], chosen, symmetric=plan.activation == "s8", hist_percent=hist_percent)
        groups[group] = groups[group].union(found) if group in groups else found
    return {tensor: groups[group] for tensor, group in plan.groups.items()}


def scales_of_plan(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, ActivationScale]:
    """Scale and zero point of every quantized tensor."""
    return {tensor: activation_scale(ranges[tensor], plan.activation) for tensor in plan.groups}
