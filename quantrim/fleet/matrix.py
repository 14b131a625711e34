"""Every model for every target under every budget: what is to be done, doing it, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from quantrim.devices import Host, Job, device_named, run_on_any
from quantrim.devices.job import RESULT
from quantrim.devices.staging import data_files, model_files, names_on_host
from quantrim.engines import require_engine
from quantrim.engines.machine import Machine, describe_machine
from quantrim.errors import QuantrimError
from quantrim.files import require_writable, size_mb, write_json
from quantrim.fleet.cache import Cache, Step, made_in
from quantrim.fleet.spec import BudgetSpec, FleetSpec, ModelSpec
from quantrim.fleet.work import Outcome, done, end_running
from quantrim.scratch import claiming
from quantrim.targets import target_named

#: Timed rounds of every race.
_REPEAT = 50
#: Model, target, budget.
_Names = tuple[str, str, str]
#: (engine, threads, models, input shape) → words of the verb that times models, for another machine.
BenchWords = Callable[[str, int, Sequence[str], "tuple[int, ...] | None"], list[str]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One file of the matrix.

    Attributes:
        model: its name.
        target: likewise.
        budget: likewise.
        verdict: "ok", "unfaithful", "too slow", "too large" or "failed".
        reason: why it is not ok, or what was chosen.
        score: least share of what FP32 says that the file says, too, 0..1; None where only values compare.
        sqnr_db: least signal to noise of an output; None where nothing was compared.
        ms: median time of the file on the target's engine.
        fp32_ms: of the float model in the same race.
        size_mb: of the file, 10^6 bytes.
        file: the file; None where there is none.
        results: JSON that the page of the cell shows.
        log: what the step said.
    """

    model: str
    target: str
    budget: str
    verdict: str
    reason: str = ""
    score: float | None = None
    sqnr_db: float | None = None
    ms: float | None = None
    fp32_ms: float | None = None
    size_mb: float | None = None
    file: str | None = None
    results: tuple[Any, ...] = ()
    log: str | None = None

    @property
    def name(self) -> str:
        """Of its page."""
        return f"{self.model}.{self.target}.{self.budget}"


@dataclass(frozen=True, slots=True)
class FleetResult:
    """Result of :func:`run_fleet`.

    Attributes:
        spec: what was asked.
        cells: models in order, for each the targets, for each the budgets.
        made: steps that were done.
        kept: steps that were done before.
        failed: steps that failed.
        seconds: time of everything.
    """

    spec: FleetSpec
    cells: tuple[Cell, ...]
    made: int
    kept: int
    failed: int
    seconds: float

    @property
    def ok(self) -> int:
        """Files within their budgets."""
        return sum(cell.verdict == "ok" for cell in self.cells)

    @property
    def headline(self) -> str:
        """How many files may be deployed, and how many steps failed."""
        text = f"{self.ok} of {len(self.cells)} files are within their budgets."
        bad = [cell for cell in self.cells if cell.verdict == "failed"]
        return text if not bad else f"{text} {len(bad)} could not be made."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value; the results of the cells stand in files of their own."""
        cells = [
            {key: value for key, value in asdict(cell).items() if key != "results"}
            | {"page": f"cells/{cell.name}.html" if cell.results else None}
            for cell in self.cells
        ]
        return {
            "command": "fleet",
            "headline": self.headline,
            "models": list(self.spec.models),
            "targets": list(self.spec.targets),
            "budgets": {name: one.model_dump() for name, one in self.spec.budgets.items()},
            "cells": cells,
            "steps": {"made": self.made, "kept": self.kept, "failed": self.failed},
            "seconds": round(self.seconds, 3),
            "machine": describe_machine().to_json(),
        }


@claiming
def run_fleet(
    spec: FleetSpec,
    save_dir: str | Path,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    ray: bool = False,
    bench_words: BenchWords | None = None,
    on_step: Callable[[str, Outcome, int, int], None] = lambda name, outcome, number, count: None,
) -> FleetResult:
    """Make and time every file of a fleet; what an earlier run finished is not done again.

    Files are made by several processes at once. They are timed afterwards, one by one, on a machine that does
    nothing else for us.

    Args:
        spec: models, targets, budgets.
        save_dir: gets ``fleet.json``, and the cache where none is named.
        cache: folder of finished steps, which fleets may share.
        workers: processes at once; the specification's by default.
        ray: make the files on a Ray cluster instead, which sees the same folders.
        bench_words: words of a timing on other machines, for targets that have some.
        on_step: called after each step with its name, what became of it, its number, and of how many.

    Raises:
        ConfigError: Ray is asked for and not installed.
        EngineError: a target's engine is not installed.
        QuantrimError: another process writes to the folder.
    """
    start = time.perf_counter()
    for name in spec.targets:
        require_engine(spec.engine_of(name))
    folder = Path(cache or Path(save_dir) / "cache").resolve()
    require_writable(folder)
    plan = _Plan(spec, Cache(folder), describe_machine())
    makes = {cell: plan.make(*cell) for cell in product(spec.models, spec.targets, spec.budgets)}
    plan.cache.remember()
    tell = _Teller(on_step, 2 * len({step.key for step in makes.values()}))
    made = _make_all(plan.cache, makes, ray=ray, workers=workers or spec.workers, tell=tell)
    timed = _time_all(plan, makes, made, bench_words, tell)
    cells = tuple(
        _cell(cell, spec.budgets[cell[2]], made[step.key], timed.get(cell), plan.cache.log(step))
        for cell, step in makes.items()
    )
    result = FleetResult(spec, cells, **tell.counts, seconds=time.perf_counter() - start)
    write_json(Path(save_dir) / "fleet.json", result.to_json())
    return result


class _Teller:
    """Counts outcomes, and passes them on."""

    def __init__(self, on_step: Callable[[str, Outcome, int, int], None], count: int) -> None:
        self.on_step, self.count = on_step, count
        self.counts = {"made": 0, "kept": 0, "failed": 0}

    def __call__(self, name: str, outcome: Outcome) -> None:
        word = "failed" if outcome.result is None else "made" if outcome.seconds else "kept"
        self.counts[word] += 1
        self.on_step(name, outcome, sum(self.counts.values()), self.count)


def _make_all(
    cache: Cache, makes: Mapping[_Names, Step], *, ray: bool, workers: int, tell: _Teller
) -> dict[str, Outcome]:
    """Outcome by key; budgets that differ in their limits alone share a step."""
    distinct = {step.key: step for step in makes.values()}
    names = {step.key: "/".join(cell) for cell, step in makes.items()}
    steps = list(distinct.values())
    found = {}
    for key, outcome in _on_ray(cache, steps) if ray else _on_processes(cache, steps, workers):
        found[key] = outcome
        tell(f"{names[key]}: made", outcome)
    return found


def _time_all(
    plan: _Plan,
    makes: Mapping[_Names, Step],
    made: Mapping[str, Outcome],
    bench_words: BenchWords | None,
    tell: _Teller,
) -> dict[_Names, Outcome]:
    """Outcome by cell, one race after the other."""
    found: dict[str, Outcome] = {}
    timed = {}
    for cell, step in makes.items():
        result = made[step.key].result
        if result is None:
            continue
        race = plan.time(*cell[:2], step, Path(result["output"]))
        if race.key not in found:
            found[race.key] = _timed(plan.cache, race, bench_words)
            tell(f"{'/'.join(cell)}: timed", found[race.key])
        timed[cell] = found[race.key]
    return timed


@dataclass(frozen=True)
class _Plan:
    """Steps of a fleet, with everything that their results depend on."""

    spec: FleetSpec
    cache: Cache
    machine: Machine

    def make(self, model: str, target: str, budget: str) -> Step:
        """Making one file."""
        given, limits = self.spec.models[model], self.spec.budgets[budget]
        engine, threads = self.spec.engine_of(target), self.spec.targets[target].threads
        asked: dict[str, Any] = {
            "engine": engine,
            "task": given.task,
            "shape": None if given.input_shape is None else list(given.input_shape),
            "threads": threads,
            "recipe": self.spec.recipe.model_dump(mode="json"),
        }
        if limits.max_drop is not None:
            asked["max_drop"] = limits.max_drop
        else:
            asked |= {"target": self.spec.rules_of(target), "accept": limits.accept}
        rules = repr(sorted(_plain(asdict(target_named(self.spec.rules_of(target)))).items()))
        files = {
            "model": str(given.file.resolve()),
            "data": str(given.data.resolve()),
            "deploy": None if given.deploy is None else str(given.deploy.resolve()),
        }
        facts = asked | self._digests(given) | {"rules": rules, "versions": self._versions(engine)}
        if limits.max_drop is None:
            return Step("ptq", facts, asked | files)
        return Step("compress", facts | {"processor": self.machine.processor}, asked | files)

    def time(self, model: str, target: str, made: Step, output: Path) -> Step:
        """Timing it beside its float model."""
        given, device = self.spec.models[model], self.spec.targets[target]
        engine = self.spec.engine_of(target)
        asked: dict[str, Any] = {
            "engine": engine,
            "shape": None if given.input_shape is None else list(given.input_shape),
            "threads": device.threads,
            "repeat": _REPEAT,
        }
        where = {"on": device.on} if device.on else {"processor": self.machine.processor}
        facts = asked | where | {"made": made.key, "versions": self._versions(engine)}
        inputs = asked | {"models": [str(given.file.resolve()), str(output)]}
        return Step("time", facts, inputs | ({"on": device.on} if device.on else {}))

    def _digests(self, given: ModelSpec) -> dict[str, str]:
        model = [*model_files(given.file), *([given.deploy] if given.deploy else [])]
        data = data_files(given.data, None)
        home = given.data if given.data.is_dir() else given.data.parent
        return {
            "model": self.cache.digest(model, given.file.parent),
            "data": self.cache.digest(data, home),
        }

    def _versions(self, engine: str) -> dict[str, str]:
        names = ("quantrim", "numpy", "onnx", "onnxruntime", engine)
        return {name: self.machine.versions[name] for name in names if name in self.machine.versions}


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a target with their sets in order, without what people are told of it."""
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in fields.items()
        if name not in ("name", "notes")
    }


def _on_processes(cache: Cache, steps: Sequence[Step], workers: int) -> Iterator[tuple[str, Outcome]]:
    """Outcomes by key, as they come; each step runs in a process of its own, started by a thread."""
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(done, str(cache.folder), step): step.key for step in steps}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            end_running()


def _on_ray(cache: Cache, steps: Sequence[Step]) -> Iterator[tuple[str, Outcome]]:
    """The same on a Ray cluster; a step whose machine dies is done on another one, by Ray."""
    from quantrim.pruning.sensitivity.parallel import started_ray

    kept = [(step.key, result) for step in steps if (result := cache.result(step)) is not None]
    yield from ((key, Outcome(result)) for key, result in kept)
    ray = started_ray()
    known = {key for key, _ in kept}
    waiting = {}
    for step in steps:
        if step.key not in known:
            task = ray.remote(num_cpus=step.inputs["threads"], max_retries=2)(done)
            waiting[task.remote(str(cache.folder), step)] = step.key
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        key = waiting.pop(ready)
        try:
            yield key, ray.get(ready)
        except ray.exceptions.RayError as error:
            yield key, Outcome(None, f"Ray: {str(error).strip().splitlines()[-1]}")


def _timed(cache: Cache, step: Step, bench_words: BenchWords | None) -> Outcome:
    """A race, here or on the device that the step names."""
    if "on" not in step.inputs:
        return done(str(cache.folder), step)
    if (known := cache.result(step)) is not None:
        return Outcome(known)
    assert bench_words is not None, "targets with other machines need the words of the verb"
    start, final = time.perf_counter(), cache.place(step)
    try:
        made_in(final, partial(_elsewhere, step, bench_words))
    except QuantrimError as error:
        return Outcome(None, str(error), time.perf_counter() - start)
    return Outcome(cache.result(step), seconds=time.perf_counter() - start)


def _elsewhere(step: Step, bench_words: BenchWords, folder: Path) -> None:
    inputs = step.inputs
    files: dict[str, Path] = {}
    names: dict[str, str] = {}
    for number, model in enumerate(map(Path, inputs["models"])):
        names[f"in/{number}/{model.name}"] = str(model)
        files |= names_on_host(model_files(model), model.parent, f"in/{number}")
    shape = None if inputs["shape"] is None else tuple(inputs["shape"])
    words = bench_words(inputs["engine"], inputs["threads"], list(names), shape)
    job = Job(((*words, RESULT.format(0)),), files, {}, names)

    def same(host: Host) -> Job:
        return job

    answer = run_on_any(device_named(inputs["on"]), same, lambda error: None)
    rows = [row | {"host": answer.host.address} for row in answer.values[0]]
    write_json(folder / "result.json", {"rows": rows})


def _cell(names: _Names, budget: BudgetSpec, made: Outcome, timed: Outcome | None, log: Path) -> Cell:
    """What a file costs and keeps, judged by its budget."""
    if made.result is None:
        return Cell(*names, "failed", made.error, log=str(log))
    value, file = made.result, Path(made.result["output"])
    figures: dict[str, Any] = {"size_mb": size_mb(file), "file": str(file), "log": str(log), **_kept(value)}
    if timed is None or timed.result is None:
        error = timed.error if timed else "it was not timed."
        return Cell(*names, "failed", error, results=(value,), **figures)
    rows = timed.result["rows"]
    figures |= {"fp32_ms": rows[0]["latency_ms"]["median"], "ms": rows[1]["latency_ms"]["median"]}
    return Cell(*names, *_verdict(value, budget, figures), results=(value, rows), **figures)


def _kept(value: Mapping[str, Any]) -> dict[str, Any]:
    """How well the file agrees with FP32."""
    if value["command"] == "compress":
        return {"score": value["metric"]["chosen"] / 100}
    engine = value["engines"][0]
    scores = [score["value"] for score in engine["judgement"]["scores"]]
    return {
        "score": min(scores, default=None),
        "sqnr_db": min((one["sqnr_db"] for one in engine["agreement"]), default=None),
    }


def _verdict(value: Mapping[str, Any], budget: BudgetSpec, figures: Mapping[str, Any]) -> tuple[str, str]:
    """Word and reason."""
    if value["command"] == "ptq" and not value["faithful"]:
        return "unfaithful", "; ".join(value["engines"][0]["judgement"]["reasons"])
    if budget.max_ms is not None and figures["ms"] > budget.max_ms:
        return "too slow", f"{figures['ms']:.2f} ms of {budget.max_ms:g} ms"
    if budget.max_mb is not None and figures["size_mb"] > budget.max_mb:
        return "too large", f"{figures['size_mb']:.2f} MB of {budget.max_mb:g} MB"
    return "ok", str(value["chosen"]) if value["command"] == "compress" else "whole INT8"
