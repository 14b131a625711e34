"""How much the loss rises when each group loses channels: measured on masks, with a standard error.

Against the usual procedure (prune for real, evaluate the whole set, nine ratios for each group) four things
save time: masks instead of rebuilt models, one run of what lies before a group, a small fixed set on which
differences to the unpruned model are taken sample by sample, and two or three ratios a group, between and
beyond which the criterion's prediction is scaled to what was measured.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantrim.errors import CheckpointError, ConfigError, DataError
from quantrim.files import read_json, write_json
from quantrim.modules import in_mode
from quantrim.pruning.cost.solver import loss_of_magnitude
from quantrim.pruning.groups.groups import ChannelGroup
from quantrim.pruning.sensitivity.criteria import Scores
from quantrim.pruning.sensitivity.evaluate import Losses, MaskedEvaluator, Probe, direct_losses
from quantrim.pruning.sensitivity.parallel import spread

_FORMAT = 1
#: Shares removed at which predictions are kept.
GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
#: A loss below so many standard errors is not told from none.
_SIGNIFICANT = 2.0
#: Predicted and measured rises that differ by less than this factor agree.
_AGREEMENT = 2.0


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement.

    Attributes:
        ratio: share of the group's units masked.
        loss: mean rise of the loss.
        error: standard error of that mean, over paired samples.
    """

    ratio: float
    loss: float
    error: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Loss of one group against the share removed.

    Attributes:
        points: measurements, rising in ratio.
        predicted: the criterion's prediction at each of GRID, in units of its own; empty when every ratio of
            interest was measured.
    """

    points: tuple[Point, ...]
    predicted: tuple[float, ...] = ()

    def __call__(self, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rise of the loss at shares removed, never falling, 0 at 0."""
        ratios = np.asarray(ratios, dtype=np.float64)
        at = np.array([point.ratio for point in self.points])
        losses = np.maximum(np.maximum.accumulate([point.loss for point in self.points]), 0.0)
        if not self.predicted:
            return np.asarray(np.interp(ratios, [0.0, *at, 1.0], [0.0, *losses, 2 * losses[-1]]))
        shape = np.array([0.0, *self.predicted])
        grid = np.array([0.0, *GRID])
        factors = losses / np.maximum(np.interp(at, grid, shape), 1e-12)
        values = np.interp(grid, grid, shape) * np.interp(grid, at, factors)
        return np.asarray(np.interp(ratios, grid, np.maximum.accumulate(values)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        points = [{"ratio": p.ratio, "loss": p.loss, "error": p.error} for p in self.points]
        return {"points": points, "predicted": list(self.predicted)}

    @staticmethod
    def from_json(value: Any) -> Curve:
        """Curve of a JSON value."""
        points = tuple(Point(float(p["ratio"]), float(p["loss"]), float(p["error"])) for p in value["points"])
        return Curve(points, tuple(map(float, value["predicted"])))


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Curves of all groups.

    Attributes:
        groups: curve of each group.
        baseline: mean loss of the unpruned model.
        evaluations: passes over the set.
        seconds: time they took.
        key: hashes of what was measured.
    """

    groups: Mapping[str, Curve]
    baseline: float
    evaluations: int
    seconds: float
    key: Mapping[str, str] = field(default_factory=dict)

    def loss(self, group: str, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rise of the loss when shares of a group's units are removed."""
        return self.groups[group](ratios)

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Shares removed and losses, as the threshold method wants them."""
        return {
            name: ([p.ratio for p in curve.points], [p.loss for p in curve.points])
            for name, curve in self.groups.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "format": _FORMAT,
            "key": dict(self.key),
            "baseline": self.baseline,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "groups": {name: curve.to_json() for name, curve in self.groups.items()},
        }


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """All that measuring needs; it can be sent to another process.

    Attributes:
        module: the model.
        groups: in the order of the network.
        scores: of each group; the lowest are masked first.
        probe: what is evaluated.
        ratios: shares to measure at each group; None for as many as it takes.
        recalibrate: measure batch norm statistics anew under each mask, as they will be after pruning.
        threads: torch threads of a worker.
    """

    module: nn.Module
    groups: tuple[ChannelGroup, ...]
    scores: Mapping[str, Scores]
    probe: Probe
    ratios: tuple[float, ...] | None = None
    recalibrate: bool = False
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far measuring is.

    Attributes:
        done: groups measured.
        total: groups to measure.
        seconds_left: estimate; None until two results show the pace.
    """

    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What measuring will take.

    Attributes:
        evaluations: passes over the set, at most.
        seconds: estimate on one worker.
    """

    evaluations: int
    seconds: float


def estimate_cost(job: Job) -> Estimate:
    """Number of evaluations and time before they are done, from one timed batch."""
    count = len(job.groups) * (3 if job.ratios is None else len(job.ratios)) + 1
    first = Probe(job.probe.batches[:1], job.probe.losses)
    with in_mode(job.module, training=False):
        direct_losses(job.module, first)
        start = time.perf_counter()
        direct_losses(job.module, first)
        once = (time.perf_counter() - start) * job.probe.samples / max(1, first.samples)
    return Estimate(count, once * count * 0.5)  # cuts halve the work on average


def measure(
    job: Job,
    *,
    path: str | Path | None = None,
    workers: int | str = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> Sensitivity:
    """Measure the curve of every group.

    Args:
        job: model, groups, scores and data.
        path: JSON file that the result is kept in, group by group; groups that it holds already are not
            measured again, so that a killed run goes on where it was.
        workers: processes on this machine, or "ray" for a Ray cluster.
        on_progress: called after every group or bundle of groups.

    Raises:
        CheckpointError: the file was measured on another model, other data or other settings.
        ConfigError: Ray is asked for and not installed.
        EngineError: a worker died.
    """
    key = fingerprint(job)
    begun = _begun(path, key)
    curves, evaluations = dict(begun.groups), begun.evaluations
    open_groups = tuple(group for group in job.groups if group.name not in curves)
    start = time.perf_counter()
    baseline = begun.baseline
    first: tuple[int, float] | None = None  # groups and seconds of the first result, preparations included
    with in_mode(job.module, training=False):
        for found in _results(job, open_groups, workers):
            curves |= found.curves
            evaluations += found.evaluations
            baseline = found.baseline
            elapsed = time.perf_counter() - start
            result = Sensitivity(dict(curves), baseline, evaluations, begun.seconds + elapsed, key)
            if path is not None:
                write_json(path, result.to_json())
            done = len(curves) - len(begun.groups)
            first = first or (done, elapsed)
            if on_progress is not None:
                since = done - first[0]
                left = (elapsed - first[1]) / since * (len(open_groups) - done) if since else None
                on_progress(Progress(done, len(open_groups), left))
    ordered = {group.name: curves[group.name] for group in job.groups}
    return Sensitivity(ordered, baseline, evaluations, begun.seconds + time.perf_counter() - start, key)


@dataclass(frozen=True, slots=True)
class Found:
    """Curves of some groups."""

    curves: dict[str, Curve]
    evaluations: int
    baseline: float


def measure_some(job: Job, names: Sequence[str]) -> Iterator[Found]:
    """Measure some groups, one after the other in the order of the network."""
    evaluator = MaskedEvaluator(job.module, job.probe, recalibrate=job.recalibrate)
    before = evaluator.losses()
    groups = [group for group in evaluator.order(job.groups) if group.name in set(names)]
    for number, group in enumerate(groups):
        measurement = _Measurement(evaluator, group, job.scores[group.name], before)
        if job.ratios is None:
            curve = measurement.adaptive()
        else:
            curve = Curve(tuple(map(measurement.point, job.ratios)))
        yield Found({group.name: curve}, measurement.evaluations + (number == 0), float(before.mean()))


class _Measurement:
    """Points of one group."""

    def __init__(self, evaluator: MaskedEvaluator, group: ChannelGroup, scores: Scores, before: Losses) -> None:
        self.evaluator, self.group, self.before = evaluator, group, before
        self.ranking = np.argsort(scores, kind="stable")
        units = group.units
        kept = np.array(
            [units - max(0, min(units - 1, round(ratio * units))) for ratio in GRID], dtype=np.int64
        )
        self.predicted = loss_of_magnitude(scores, kept)
        self.evaluations = 0

    def point(self, ratio: float) -> Point:
        """Mask the lowest share of units and compare sample by sample."""
        count = max(0, min(self.group.units - 1, round(ratio * self.group.units)))
        if count == 0:
            return Point(ratio, 0.0, 0.0)
        self.evaluations += 1
        after = self.evaluator.losses(self.group, self.group.removal(self.ranking[:count]))
        rises = after - self.before
        error = float(rises.std(ddof=1) / np.sqrt(len(rises))) if len(rises) > 1 else 0.0
        return Point(count / self.group.units, float(rises.mean()), error)

    def adaptive(self) -> Curve:
        """Half of the group, then less if that hurts and more if not; a third where prediction fails.

        The prediction is the criterion's; what was measured scales it (see :class:`Curve`).
        """
        middle = self.point(0.5)
        hurts = middle.loss > _SIGNIFICANT * middle.error
        points = [middle, self.point(0.25 if hurts else 0.75)]
        if not self._agree(points):
            points.append(self.point(0.75 if hurts else 0.25))
        distinct = {point.ratio: point for point in points if point.ratio > 0}
        return Curve(tuple(distinct[ratio] for ratio in sorted(distinct)), tuple(map(float, self.predicted)))

    def _agree(self, points: Sequence[Point]) -> bool:
        expected = np.interp([p.ratio for p in points], [0.0, *GRID], [0.0, *self.predicted])
        measured = np.array([max(p.loss, p.error, 1e-12) for p in points])
        factors = measured / np.maximum(expected, 1e-12)
        return bool(factors.max() <= _AGREEMENT * factors.min())


def fingerprint(job: Job) -> dict[str, str]:
    """Hashes of weights and groups, of the data, and of the settings."""
    model, data = hashlib.sha256(), hashlib.sha256()
    for name, value in job.module.state_dict().items():
        model.update(name.encode())
        model.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for group in job.groups:
        model.update(f"{group.name} {group.units}".encode())
    for batch in job.probe.batches:
        for tensor in batch:
            data.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    settings = hashlib.sha256(f"{job.ratios} {job.recalibrate} {job.probe.losses.__qualname__}".encode())
    for name in sorted(job.scores):
        settings.update(np.argsort(job.scores[name], kind="stable").tobytes())
    return {"model": model.hexdigest(), "data": data.hexdigest(), "settings": settings.hexdigest()}


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Read a file that :func:`measure` wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        value = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a sensitivity file of format {_FORMAT}. Measure it again.")
    try:
        groups = {str(name): Curve.from_json(curve) for name, curve in value["groups"].items()}
        numbers = (float(value["baseline"]), int(value["evaluations"]), float(value["seconds"]))
        return Sensitivity(groups, *numbers, {str(k): str(v) for k, v in value["key"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged sensitivity file ({error}). Measure it again.") from error


def _results(job: Job, groups: Sequence[ChannelGroup], workers: int | str) -> Iterator[Found]:
    require_workers(workers)
    names = [group.name for group in groups]
    if workers == 1:
        return measure_some(job, names)
    return spread(job, measure_bundle, names, workers, threads=job.threads)


def measure_bundle(job: Job, names: Sequence[str]) -> Found:
    """What a worker measures at once; on a copy of the model, since Ray shows its tensors to others too."""
    found = list(measure_some(replace(job, module=copy.deepcopy(job.module)), names))
    curves = {name: curve for one in found for name, curve in one.curves.items()}
    return Found(curves, sum(one.evaluations for one in found), found[-1].baseline)


def _begun(path: str | Path | None, key: Mapping[str, str]) -> Sensitivity:
    if path is None or not Path(path).exists():
        return Sensitivity({}, 0.0, 0, 0.0, key)
    begun = load_sensitivity(path)
    for part, meaning in (("model", "another model"), ("data", "other data"), ("settings", "other settings")):
        if begun.key.get(part) != key[part]:
            raise CheckpointError(f"{path}: was measured on {meaning}. Delete it, or give another path.")
    return begun


def require_workers(workers: int | str) -> None:
    """Refuse what :func:`measure` can't spread work over."""
    if workers != "ray" and (isinstance(workers, str) or workers < 1):
        raise ConfigError(f"workers is {workers!r}; give a number of processes, at least 1, or 'ray'.")
