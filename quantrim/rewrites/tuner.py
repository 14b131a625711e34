"""Choose rewrites by the engine's clock: profile, try where the milliseconds are, race, keep or forget.

Sites that look the same to the engine (equal rewrite, form, shapes and settings) are tried together. Those
whose layers take most time in the engine's profile come first. Each trial is proven equal to the original,
built into a file, and raced against the fastest file so far; it is kept where it wins beyond noise on one of
the engines and loses on none. Answers are remembered (:mod:`quantrim.rewrites.memory`), so that the same layers
in another model are not raced again, and so that with a full memory the outcome is always the same.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quantrim.engines import EngineName, LayerRun, Session, open_session
from quantrim.errors import EngineError, ModelError
from quantrim.graph.from_onnx import observed_shapes
from quantrim.graph.ports import Feed
from quantrim.rewrites.base import Site
from quantrim.rewrites.catalog import rewritten, sites_of
from quantrim.rewrites.contest import Contest, Entrant
from quantrim.rewrites.duel import Duel, duel
from quantrim.rewrites.memory import Memory, scope_of
from quantrim.rewrites.proof import prove

#: Writes the file that an engine would run of a float model, such as its INT8 form.
Build = Callable[[ir.Model], Path]

#: Seconds for one race at most.
_RACE_SECONDS = 4.0
#: Sites with a smaller share of the profiled time are not worth a race.
_LEAST_SHARE = 0.004


@dataclass(frozen=True, slots=True)
class Trial:
    """A rewrite that was tried.

    Attributes:
        rewrite: its name.
        form: in which form.
        sites: how many places.
        engine: where it was raced.
        ratio: time with it over time without; 1.0 where it was not raced.
        kept: whether it stays.
        reason: why not, where it was refused: the proof or the engine said so.
    """

    rewrite: str
    form: str
    sites: int
    engine: EngineName
    ratio: float
    kept: bool
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning made of a model.

    Attributes:
        model: the rewritten model; the original where nothing pays.
        trials: everything that was tried, in order.
        sites: the sites that were rewritten, in order.
        seconds: that it took.
        complete: False where the time was up before everything was tried.
    """

    model: ir.Model
    trials: tuple[Trial, ...] = ()
    sites: tuple[Site, ...] = ()
    seconds: float = 0.0
    complete: bool = True

    @property
    def kept(self) -> tuple[Trial, ...]:
        """The rewrites that stay."""
        return tuple(trial for trial in self.trials if trial.kept)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "seconds": round(self.seconds, 3),
            "complete": self.complete,
            "trials": [trial.to_json() for trial in self.trials],
        }


def tune(
    model: ir.Model,
    feeds: Sequence[Feed],
    build: Build,
    engines: Sequence[EngineName],
    *,
    kind: str = "float",
    threads: int = 1,
    seconds: float = 60.0,
    memory: Memory | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """Find the rewrites of a model that make its file faster.

    Args:
        model: normalised float model.
        feeds: inputs for proofs; the first sample of the first one is raced on.
        build: writes the file to be raced, each time to another path.
        engines: where it shall be fast; at least one.
        kind: of file that is built; answers for one kind say nothing of another.
        threads: CPU threads.
        seconds: when no new race is begun any more; what the memory knows costs no race.
        memory: answers of earlier races.
        on_trial: called with each trial.

    Raises:
        EngineError: an engine can't run the file of the original model.
    """
    search = _Search(model, feeds, build, engines, kind, threads, memory or Memory(None), on_trial)
    return search.run(seconds)


@dataclass(slots=True)
class _Runner:
    """The fastest file so far on one engine."""

    engine: EngineName
    scope: str
    session: Session
    profile: tuple[LayerRun, ...] = field(default=())


class _Search:
    """The model as rewritten so far, and what has been tried."""

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Feed],
        build: Build,
        engines: Sequence[EngineName],
        kind: str,
        threads: int,
        memory: Memory,
        on_trial: Callable[[Trial], None],
    ) -> None:
        self.original = self.model = model
        self.feeds, self.build, self.kind, self.threads = feeds, build, kind, threads
        self.memory, self.on_trial = memory, on_trial
        self.feed = one_sample(model, feeds[0])
        self.shapes = observed_shapes(model, self.feed)
        self.first_path = build(model)
        self.runners = [self._runner(engine, self.first_path) for engine in engines]
        self.trials: list[Trial] = []
        self.sites: list[Site] = []
        self.seen: set[str] = set()
        self.complete = True

    def _runner(self, engine: EngineName, path: Path) -> _Runner:
        session = open_session(path, engine, threads=self.threads)
        scope = f"{scope_of(engine, self.threads)} | {self.kind}"
        return _Runner(engine, scope, session, session.layers(self.feed))

    def run(self, seconds: float) -> Tuned:
        """Try group after group until none is left."""
        start = time.perf_counter()
        while (group := self._next()) is not None:
            self.seen.add(_key(group[0]))
            late = time.perf_counter() - start > seconds
            if late and not self._known(group):
                self.complete = False
                continue
            self._try(group)
        if self.sites and not self._pays():
            self.model, self.sites = self.original, []
            self.trials = [_forgotten(trial) for trial in self.trials]
        return Tuned(
            self.model, tuple(self.trials), tuple(self.sites), time.perf_counter() - start, self.complete
        )

    def _next(self) -> list[Site] | None:
        """The sites not yet tried that stand where most time goes, those together that look the same."""
        groups: dict[str, list[Site]] = {}
        for site in sites_of(self.model, self.shapes):
            if _key(site) not in self.seen:
                groups.setdefault(_key(site), []).append(site)
        shares = {key: self._share(group) for key, group in groups.items()}
        worth = [key for key in groups if shares[key] >= _LEAST_SHARE]
        return groups[max(worth, key=lambda key: shares[key])] if worth else None

    def _share(self, group: Sequence[Site]) -> float:
        """Largest share of an engine's profiled time that the layers of sites take."""
        names = {name for site in group for name in site.nodes}
        results = {str(value.name) for node in self.model.graph if node.name in names for value in node.outputs}
        return max(share_of(runner.profile, names | results) for runner in self.runners)

    def _known(self, group: Sequence[Site]) -> bool:
        return all(self.memory.recall(runner.scope, _key(group[0])) is not None for runner in self.runners)

    def _try(self, group: list[Site]) -> None:
        first = group[0]
        try:
            candidate = self._proven(group)
            answers = self._answers(candidate, _key(first))
        except (ModelError, EngineError) as error:  # not this rewrite, then
            self._tell(
                Trial(first.rewrite, first.form, len(group), self.runners[0].engine, 1.0, False, str(error))
            )
            return
        wins = any(answer.wins for answer, _ in answers) and not any(answer.loses for answer, _ in answers)
        for runner, (answer, _) in zip(self.runners, answers, strict=True):
            self._tell(Trial(first.rewrite, first.form, len(group), runner.engine, answer.ratio, wins))
        if wins:
            self._accept(candidate, group, [session for _, session in answers])

    def _proven(self, group: Sequence[Site]) -> ir.Model:
        candidate = rewritten(self.model, self.shapes, group)
        prove(self.original, candidate, self.feeds[:1])
        return candidate

    def _answers(self, candidate: ir.Model, key: str) -> list[tuple[Duel, Session | None]]:
        """What each engine's clock says, from memory where it knows."""
        known = [self.memory.recall(runner.scope, key) for runner in self.runners]
        if all(answer is not None for answer in known):
            return [(answer, None) for answer in known if answer is not None]
        path = self.build(candidate)
        answers: list[tuple[Duel, Session | None]] = []
        for runner in self.runners:
            session = open_session(path, runner.engine, threads=self.threads)
            answer = duel(runner.session, session, self.feed, seconds=_RACE_SECONDS)
            self.memory.learn(runner.scope, key, answer)
            answers.append((answer, session))
        return answers

    def _accept(self, candidate: ir.Model, group: Sequence[Site], sessions: Sequence[Session | None]) -> None:
        self.model, self.shapes = candidate, observed_shapes(candidate, self.feed)
        self.sites += group
        path: Path | None = None
        for runner, session in zip(self.runners, sessions, strict=True):
            if session is None:
                path = path or self.build(candidate)
                session = open_session(path, runner.engine, threads=self.threads)
            runner.session, runner.profile = session, session.layers(self.feed)

    def _pays(self) -> bool:
        """Whether everything together beats the original: answers of other models are no proof for this one."""
        subject = f"{self.kind} {digest(self.original)} {digest(self.model)}"
        path = self.build(self.model)
        before, after = Entrant("original", self.first_path), Entrant("rewritten", path)
        engines = [runner.engine for runner in self.runners]
        contest = Contest(engines, self.threads, self.feed, self.memory, subject, _RACE_SECONDS)
        return contest.beats(after, before)

    def _tell(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.on_trial(trial)


def _forgotten(trial: Trial) -> Trial:
    return Trial(trial.rewrite, trial.form, trial.sites, trial.engine, trial.ratio, False,
                 "all rewrites together were no faster than none") if trial.kept else trial  # fmt: skip


def _key(site: Site) -> str:
    return f"{site.rewrite} | {site.form} | {site.key}"


def one_sample(model: ir.Model, feed: Feed) -> dict[str, np.ndarray]:
    """The first sample of a batch, or the whole of it where the model's batch is fixed."""
    fixed = {
        str(value.name)
        for value in model.graph.inputs
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], int)
    }
    return dict(feed) if fixed else {name: array[:1] for name, array in feed.items()}


def share_of(profile: Sequence[LayerRun], names: set[str]) -> float:
    """Share of a profile's time that layers made of these nodes or tensors take, conversions of them too."""
    total = sum(run.time_ms or 0.0 for run in profile)
    mine = sum(run.time_ms or 0.0 for run in profile if any(_stem(name) in names for name in run.nodes))
    return mine / total if total else 0.0


#: What OpenVINO appends to a tensor's name for a layout conversion behind it, and before it its reader.
_REORDER = re.compile(r"_[a-dA-D0-9]{3,}_[a-dA-D0-9]{3,}_.*$")


def _stem(name: str) -> str:
    """Name of the tensor or node that a layer of an engine stands for."""
    return _REORDER.sub("", name).removesuffix("_original").removesuffix("/WithoutBiases")


def digest(model: ir.Model) -> str:
    """Fingerprint of a graph: operators, names, attributes and shapes of constants, not their values."""
    hashed = hashlib.sha256()
    for text in _described(model):
        hashed.update(text.encode())
    return hashed.hexdigest()[:16]


def _described(model: ir.Model) -> Iterator[str]:
    constants: Mapping[str, ir.Value] = model.graph.initializers
    for value in model.graph.inputs:
        yield f"{value.name} {value.shape}"
    for node in model.graph:
        operands = ["" if value is None else str(value.name) for value in node.inputs]
        yield f"{node.op_type} {operands} {sorted(node.attributes)}"
    for name in sorted(constants):
        tensor = constants[name].const_value
        yield f"{name} {None if tensor is None else tensor.shape}"
