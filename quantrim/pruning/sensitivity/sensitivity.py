"""How much the loss rises when each group loses channels: measured on masks, with a standard error.

Against the usual procedure (prune for real, evaluate the whole set, nine ratios for each group) four things
save time: masks instead of rebuilt models; one run of what lies before a group; a fixed set on which
differences to the unpruned model are taken sample by sample, and of which no more is run than it takes until
their standard error is small; four to seven ratios a group, more where the loss begins to rise.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quantrim.errors import CheckpointError, ConfigError
from quantrim.files import write_json
from quantrim.modules import in_mode
from quantrim.pruning.groups.groups import ChannelGroup
from quantrim.pruning.sensitivity.criteria import Scores, loss_of_magnitude
from quantrim.pruning.sensitivity.curves import (
    GRID,
    Curve,
    Point,
    Sensitivity,
    load_sensitivity,
)
from quantrim.pruning.sensitivity.evaluate import MaskedEvaluator
from quantrim.pruning.sensitivity.parallel import spread
from quantrim.pruning.sensitivity.probe import Losses, Probe, direct_losses

#: Shares measured at every group, and how many points a group gets at most.
_FIRST, _MOST = (0.25, 0.5, 0.75, 0.9), 7
#: Neighbours are far apart where the roots of their rises differ by more than so many roots of the baseline.
_FAR = 0.35
#: A baseline below this share of the largest rise gives no scale.
_TINY = 1e-2
#: Samples that are measured at least, and standard errors that are small enough: of the rise, of the baseline.
_LEAST_SAMPLES, _OF_RISE, _OF_BASELINE = 128, 0.1, 0.005
#: Losses that tell one loss function from another, and how far the same one may differ on another machine.
_TOLD, _SAME = 8, 1e-3


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

    def __post_init__(self) -> None:
        if self.ratios is None:
            return
        object.__setattr__(self, "ratios", tuple(sorted(self.ratios)))
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigError(f"ratios must be shares in (0, 1], they are {self.ratios}.", field="ratios")


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
    count = len(job.groups) * (_MOST if job.ratios is None else len(job.ratios)) + 1
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
        curve = measurement.adaptive() if job.ratios is None else measurement.at(job.ratios)
        yield Found({group.name: curve}, measurement.evaluations + (number == 0), float(before.mean()))


class _Measurement:
    """Points of one group."""

    def __init__(self, evaluator: MaskedEvaluator, group: ChannelGroup, scores: Scores, before: Losses) -> None:
        self.evaluator, self.group, self.before = evaluator, group, before
        self.scale = abs(float(before.mean()))
        self.ranking = np.argsort(scores, kind="stable")
        units = group.units
        kept = np.array(
            [units - max(0, min(units - 1, round(ratio * units))) for ratio in GRID], dtype=np.int64
        )
        self.predicted = tuple(map(float, loss_of_magnitude(scores, kept)))
        self.evaluations = 0

    def at(self, ratios: Sequence[float]) -> Curve:
        """Curve measured at these shares; of a block, without it."""
        ratios = (1.0,) if self.group.is_block else ratios
        points = {point.ratio: point for point in map(self.point, ratios) if point is not None}
        return Curve(tuple(points[ratio] for ratio in sorted(points)))

    def adaptive(self) -> Curve:
        """Curve measured at as many shares as it takes.

        Neighbours that are far apart get a point between them, the lowest ones first: where the loss has risen
        by more than its baseline, nobody will prune.
        """
        points = {0.0: Point(0.0, 0.0, 0.0)}
        for ratio in _FIRST:
            self._add(points, ratio)
        if self.scale < _TINY * (most := max(point.loss for point in points.values())):
            self.scale = most / 4  # a divergence starts at zero
        while len(points) <= _MOST:
            between = self._between(points)
            if between is None or not self._add(points, between):
                break
        return Curve(tuple(points[ratio] for ratio in sorted(points) if ratio > 0), self.predicted)

    def _add(self, points: dict[float, Point], ratio: float) -> bool:
        """Measure another point; False where the group has no width that is new."""
        if self._count(ratio) / self.group.units in points:
            return False
        point = self.point(ratio)
        if point is not None:
            points[point.ratio] = point
        return point is not None

    def _between(self, points: Mapping[float, Point]) -> float | None:
        ratios = sorted(points)
        roots = [np.sqrt(max(points[ratio].loss, 0.0) / max(self.scale, 1e-9)) for ratio in ratios]
        for low, high, start, end in zip(ratios, ratios[1:], roots, roots[1:], strict=False):
            if end - start > _FAR and start < 1:
                return (low + high) / 2
        return None

    def _count(self, ratio: float) -> int:
        most = self.group.units - (not self.group.is_block)
        return max(0, min(most, round(ratio * self.group.units)))

    def point(self, ratio: float) -> Point | None:
        """Mask the lowest share of units and compare sample by sample; None where no unit would go."""
        count = self._count(ratio)
        if count == 0:
            return None
        self.evaluations += 1
        removal = self.group.removal(self.ranking[:count])
        rises = np.empty(0)
        with closing(self.evaluator.portions(self.group, removal)) as portions:
            for losses in portions:
                start = len(rises)
                rises = np.concatenate([rises, losses - self.before[start : start + len(losses)]])
                if len(rises) >= _LEAST_SAMPLES and self._precise(rises):
                    break
        return Point(count / self.group.units, float(rises.mean()), _standard_error(rises))

    def _precise(self, rises: Losses) -> bool:
        wanted = max(_OF_RISE * abs(float(rises.mean())), _OF_BASELINE * self.scale)
        return _standard_error(rises) <= wanted


def _standard_error(rises: Losses) -> float:
    return float(rises.std(ddof=1) / np.sqrt(len(rises))) if len(rises) > 1 else 0.0


def fingerprint(job: Job) -> dict[str, str]:
    """Hashes of weights and groups, of the data and of the settings, and what the loss makes of the model."""
    model, data = hashlib.sha256(), hashlib.sha256()
    for name, value in job.module.state_dict().items():
        model.update(name.encode())
        model.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for group in job.groups:
        model.update(f"{group.name} {group.units}".encode())
    for batch in job.probe.batches:
        for tensor in batch:
            data.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    settings = hashlib.sha256(f"{job.ratios} {job.recalibrate}".encode())
    for name in sorted(job.scores):
        settings.update(np.argsort(job.scores[name], kind="stable").tobytes())
    hashes = {"model": model.hexdigest(), "data": data.hexdigest(), "settings": settings.hexdigest()}
    return hashes | {"losses": _first_losses(job)}


def _first_losses(job: Job) -> str:
    """What the loss function makes of the unpruned model's first samples: no name tells one from another."""
    with in_mode(job.module, training=False):
        losses = direct_losses(job.module, Probe(job.probe.batches[:1], job.probe.losses))
    return " ".join(f"{loss:.6g}" for loss in losses[:_TOLD])


def _same_losses(one: str, other: str) -> bool:
    """Whether two accounts of losses are equal, but for rounding on another machine."""
    first, second = (np.array([float(word) for word in text.split()]) for text in (one, other))
    return len(first) == len(second) > 0 and bool(np.allclose(first, second, rtol=_SAME, atol=1e-6))


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
    if not _same_losses(begun.key.get("losses", ""), key["losses"]):
        raise CheckpointError(f"{path}: was measured with another loss. Delete it, or give another path.")
    return begun


def require_workers(workers: int | str) -> None:
    """Refuse what :func:`measure` can't spread work over."""
    if workers != "ray" and (isinstance(workers, str) or workers < 1):
        raise ConfigError(f"workers is {workers!r}; give a number of processes, at least 1, or 'ray'.")
