"""The fastest file of a model whose accuracy stays within a drop, all judged and timed on the engine.

In order: FP32; BF16 where the engine has it; everything in INT8, with other range estimators and refinements
while the drop is too large; INT8 without the layers that it made slower; and where whole INT8 loses too much,
layers are put back to float, those first that make most error for the time they save. What stays within the
drop races in turns at the end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from quantrim.compression.answers import Answers
from quantrim.compression.judge import Judge, agreement_judge
from quantrim.compression.result import Candidate, CompressResult, Layer
from quantrim.compression.search import fewest_float
from quantrim.compression.spool import Spool
from quantrim.compression.tuning import Tuning, rewritten_model
from quantrim.compression.variants import Files, Variant, Variants
from quantrim.engines import EngineName, LayerRun, Precision, Session, open_session, require_engine
from quantrim.engines.bench import interleaved, latency
from quantrim.engines.race import Race
from quantrim.engines.trial import EngineResult, ask
from quantrim.errors import ConfigError
from quantrim.files import atomic_path, require_onnx_output, sha256, size_mb
from quantrim.graph import normalize, prove_equal, read_onnx
from quantrim.graph.feeds import IMAGENET, ImagePreprocess, calibration_feeds, kept_batches
from quantrim.graph.load import as_onnx
from quantrim.graph.peek import peekable
from quantrim.graph.ports import input_ports
from quantrim.graph.session import save_model
from quantrim.journal import digest, journal_beside, versions
from quantrim.judges import Judging
from quantrim.post_training import PtqConfig
from quantrim.post_training.quantize import ranges_path
from quantrim.rewrites.files import ask_precision, engines_have_bf16
from quantrim.rewrites.memory import scope_of
from quantrim.scratch import scratch_folder
from quantrim.targets import target_named

if TYPE_CHECKING:
    import torch

#: Tried in this order while whole INT8 loses too much; none of them costs latency.
RECIPES = (Variant("mse"), Variant("hist"), Variant("kl"), Variant("mse", ("equalize", "bias")))
#: Runs whose mean says what a layer takes.
_PROFILED_RUNS = 5
#: A layer got slower when INT8 costs it more than this share of the whole float model's time.
_SLOWER = 0.002
#: Candidates beyond the drop that are timed, those that lose least.
_BEYOND = 8
#: Candidates that race against FP32; the others were slower when they were timed alone.
_RACERS = 4
#: Medians that differ by less are equal, and accuracy decides.
_EQUAL = 1.02
_RACE_SECONDS = 20.0
_WARMUP, _FEWEST, _MOST = 3, 7, 50


def compress(
    model: str | Path | torch.nn.Module,
    data: Any,
    output: str | Path,
    *,
    max_drop: float,
    engine: EngineName = "openvino",
    judge: Judge | None = None,
    judging: Judging | None = None,
    samples: int = 100,
    judged: int = 200,
    recipes: Sequence[Variant] = RECIPES,
    skip: Sequence[str] = (),
    offers: Offers | None = None,
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray] = IMAGENET,
    input_shape: tuple[int, ...] | None = None,
    example_inputs: Any = None,
    threads: int = 1,
    tuning: Tuning | None = None,
    pick_ms: float | None = None,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> CompressResult:
    """Find the fastest file within a drop of accuracy, and write it.

    Args:
        model: .onnx file, Paddle inference model folder, or nn.Module.
        data: pictures (see :func:`quantrim.calibrate.calibration_feeds`): some calibrate, and without a
            ``judge`` the others tell how often a file gives FP32's classes.
        output: .onnx file; an INT8 file gets its ``NAME.ranges.json`` beside it.
        max_drop: points of accuracy that may be lost, of 100.
        engine: where accuracy and latency count; its own target places the quantizers.
        judge: measure of accuracy on labelled data; agreement with FP32 by default.
        judging: without a ``judge``: how outputs are read; as their shapes say by default.
        samples: pictures that calibrate.
        judged: further pictures that judge, without a ``judge``.
        recipes: ways to choose the numbers of whole INT8, tried until one is within the drop.
        skip: globs on node names that stay float in every file.
        offers: what training may add.
        preprocess: for image files.
        input_shape: shape of the first input where axes other than the batch are dynamic.
        example_inputs: for an nn.Module: tensors to export it with.
        threads: CPU threads of the race.
        tuning: look for rewrites that the engine runs faster, and let INT8 files race with their float parts in
            BF16, too.
        pick_ms: take the most accurate file that needs no more milliseconds, whatever it loses; the fastest one
            where none is so fast.
        on_candidate: called with each candidate as soon as it is judged.

    Raises:
        ModelError, DataError, ConfigError, EngineError: one line each that says what is wrong.
    """
    if not 0 <= max_drop <= 100:
        raise ConfigError(f"max_drop is {max_drop:g}; it counts points of accuracy, 0 to 100.")
    if not recipes:
        raise ConfigError("recipes is empty; give at least one way to choose the numbers of whole INT8.")
    if pick_ms is not None and not pick_ms > 0:
        raise ConfigError(f"pick_ms is {pick_ms:g}; milliseconds are positive.", field="pick_ms")
    require_engine(engine)
    require_onnx_output(output, model)
    start = time.perf_counter()
    with scratch_folder() as folder, journal_beside(output) as journal:
        journal.open()
        data = peekable(data)
        source = as_onnx(model, folder, example_inputs, data, input_shape)
        original = read_onnx(source)
        wanted = samples + (judged if judge is None else 0)
        feeds = calibration_feeds(
            data,
            input_ports(original),
            samples=wanted,
            batch_size=PtqConfig().batch_size,
            preprocess=preprocess,
            shape=input_shape,
        )
        spool = Spool.of(feeds, folder)
        calibration, held = spool.split(samples)
        normalized = normalize(original)
        prove_equal(original, normalized, next(iter(calibration)))
        judging = judging or Judging()
        found = judge or agreement_judge(open_session(source, engine), held.__iter__, judging)
        notes = _doubts(found, max_drop, same_pictures=judge is None and held is calibration)
        kept = list(islice(calibration, kept_batches(next(iter(calibration)))))
        rules = target_named(engine)

        def variants_of(float_model: ir.Model) -> Variants:
            return Variants(float_model, rules, calibration.__iter__, kept, skip, journal)

        where = _Engine(engine, threads, kept)
        scope = digest(source, spool.digest, found.key, where.key, samples, skip, judging, versions())
        answers = Answers(journal, scope)
        tuned, rewritten = rewritten_model(normalized, kept, engine, skip, threads, tuning, answers)
        search = _Search(found, max_drop, where, answers, on_candidate, judging)
        whole = search.run(source, variants_of(tuned.model), recipes, rewritten)
        search.train(offers or Offers(), whole, variants_of, recipes)
        if tuning is not None:
            search.mix_precisions()
        entries, chosen = search.race(pick_ms)
        verdict = search.deliver(chosen, Path(output))
    return CompressResult(
        output=str(output),
        engine=engine,
        target=rules.name,
        metric=found.name,
        images=found.images,
        max_drop=max_drop,
        candidates=entries,
        chosen=chosen.candidate.name,
        layers=tuple(search.layers),
        verdict=verdict,
        notes=notes,
        seconds=time.perf_counter() - start,
        tuning=None if tuning is None else tuned.to_json(),
    )


def _doubts(judge: Judge, max_drop: float, *, same_pictures: bool) -> tuple[str, ...]:
    """What to know before trusting the points."""
    notes = []
    if same_pictures:
        notes.append("Too few pictures to keep some apart: the same ones calibrate and judge.")
    if judge.step is not None and judge.step > max_drop:
        notes.append(
            f"One of the {judge.images} pictures is worth {judge.step:.2g} points, more than may be lost; "
            "judge on more of them."
        )
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class Offers:
    """Candidates that training makes, made only when the search comes to them.

    Attributes:
        quantized: trains with quantization in the loop, where whole INT8 loses too much; gives the INT8 file
            and the engine's verdict on it.
        pruned: (share of latency removed, function that gives the FP32 file), ascending; each is quantized in
            its turn, until one loses too much before.
    """

    quantized: Callable[[], tuple[Path, EngineResult | None]] | None = None
    pruned: Sequence[tuple[float, Callable[[], Path]]] = ()


@dataclass(frozen=True, slots=True)
class _Engine:
    """Where everything is measured, and on what the race and the profiles run."""

    name: EngineName
    threads: int
    kept: Sequence[Mapping[str, np.ndarray]]

    @property
    def key(self) -> str:
        """What measured times hold for."""
        return scope_of(self.name, self.threads)

    def profile(self, path: Path) -> tuple[LayerRun, ...]:
        session = open_session(path, self.name, threads=self.threads)
        return session.layers(self.feed(session), _PROFILED_RUNS)

    def feed(self, session: Session) -> dict[str, np.ndarray]:
        """One sample, or a batch where the model's is fixed; by the names of the session's inputs."""
        batch = dict(zip((port.name for port in session.inputs), self.kept[0].values(), strict=True))
        fixed = session.inputs[0].shape[0] is not None
        return batch if fixed else {name: array[:1] for name, array in batch.items()}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A candidate with its file.

    Attributes:
        candidate: what is told of it.
        path: the file.
        verdict: gives the engine's account of the delivered copy; None for a float file.
    """

    candidate: Candidate
    path: Path
    verdict: Callable[[Path], EngineResult | None] | None = None


class _Search:
    """The candidates in the order they were tried."""

    def __init__(
        self,
        judge: Judge,
        max_drop: float,
        engine: _Engine,
        answers: Answers,
        on_candidate: Callable[[Candidate], None],
        judging: Judging,
    ) -> None:
        self.judge, self.max_drop, self.engine = judge, max_drop, engine
        self.answers, self.on_candidate = answers, on_candidate
        self.judging = replace(judging, accept="any")  # the drop that may be lost is the bar
        self.raced: Race | None = None
        self.entries: list[_Entry] = []
        self.layers: list[Layer] = []

    def run(
        self, source: Path, variants: Variants, recipes: Sequence[Variant], rewritten: Path | None = None
    ) -> bool:
        """Try everything that needs no training; whether whole INT8 is within the drop."""
        for word, path in (("", source), (" rewritten", rewritten)):
            if path is not None:
                self._consider(f"FP32{word}", path)
                if self.engine.name == "openvino":
                    self._consider(f"BF16{word}", path, precision="bf16")
        files = Files(source, variants, rewritten or source)
        recipe, best = self._whole("INT8", files, recipes)
        gains, whole_ms = self.answers.of(
            ("gains", files.key, sha256(best.path)),
            tuple[dict[str, float], float],
            lambda: self._gains(variants, best.path),
        )
        if self._within(best):
            self._without_slow(files, recipe, gains, whole_ms)
        else:
            self._mixed(files, recipe, gains)
        return self._within(best)

    def mix_precisions(self) -> None:
        """Let the INT8 files within the drop compute their float parts in BF16, where the engine can."""
        if not engines_have_bf16([self.engine.name]):
            return
        for entry in [one for one in self.entries if one.verdict is not None and self._within(one)]:
            name, layers = f"{entry.candidate.name}, floats in BF16", frozenset(entry.candidate.float_layers)
            self._consider(name, entry.path, precision="bf16", float_layers=layers, verdict=entry.verdict)

    def train(
        self,
        offers: Offers,
        whole: bool,
        variants_of: Callable[[ir.Model], Variants],
        recipes: Sequence[Variant],
    ) -> None:
        """Try what training offers: whole INT8 where it lost too much, then pruned models in INT8."""
        if offers.quantized is not None and not whole:
            path, verdict = offers.quantized()
            self._consider("INT8 after QAT", path, verdict=lambda copy: verdict)
        for ratio, make in offers.pruned:
            path = make()
            pruned = self._consider(f"pruned by {ratio:g}", path)
            if not self._within(pruned):
                break
            files = Files(path, variants_of(normalize(read_onnx(path))), path)
            self._whole(f"pruned by {ratio:g}, INT8", files, recipes)

    def _consider(
        self,
        name: str,
        path: Path,
        *,
        precision: Precision = "f32",
        float_layers: frozenset[str] = frozenset(),
        verdict: Callable[[Path], EngineResult | None] | None = None,
    ) -> _Entry:
        """Judge a file on the engine."""
        taken = sum(entry.candidate.name.startswith(name) for entry in self.entries)
        name = f"{name} ({taken + 1})" if taken else name
        points = self._points(path, precision)
        drop = self.entries[0].candidate.points - points if self.entries else 0.0
        candidate = Candidate(name, precision, points, drop, size_mb(path), tuple(sorted(float_layers)))
        self.entries.append(_Entry(candidate, path, verdict))
        self.on_candidate(candidate)
        return self.entries[-1]

    def _points(self, path: Path, precision: Precision) -> float:
        def judged() -> float:
            return self.judge.points(open_session(path, self.engine.name, precision=precision))

        if self.judge.key is None:  # what it judges on, nobody knows
            return judged()
        return self.answers.of(("points", sha256(path), precision), float, judged)

    def _int8(
        self, name: str, files: Files, recipe: Variant, float_layers: frozenset[str] = frozenset()
    ) -> _Entry:
        asked = ("candidate", files.key, recipe, sorted(float_layers))
        path = self.answers.path(asked, ".onnx")
        float_nodes = self.answers.of(
            asked,
            dict[str, str],
            lambda: dict(files.variants.write(path, recipe, float_layers).float_nodes),
            (path, path.with_name(path.name + ".data"), ranges_path(path)),
        )

        def verdict(copy: Path) -> EngineResult:
            engine = self.engine
            allowed = any(self._within(one) for one in self.entries if one.candidate.precision == "bf16")
            return ask(
                engine.name, files.source, copy, files.variants.graph, float_nodes, engine.kept,
                engine.threads, bf16=allowed, judging=self.judging, held_out=False, times=self.raced,
            )  # fmt: skip

        return self._consider(name, path, float_layers=float_layers, verdict=verdict)

    def _within(self, entry: _Entry) -> bool:
        return entry.candidate.drop <= self.max_drop

    def _whole(self, name: str, files: Files, recipes: Sequence[Variant]) -> tuple[Variant, _Entry]:
        """Everything in INT8, by one recipe after the other until one is within the drop; the best."""
        tried: list[tuple[Variant, _Entry]] = []
        for recipe in recipes:
            tried.append((recipe, self._int8(f"{name}, {recipe.name}", files, recipe)))
            if self._within(tried[-1][1]):
                break
        return max(tried, key=lambda pair: pair[1].candidate.points)

    def _gains(self, variants: Variants, int8: Path) -> tuple[dict[str, float], float]:
        """Milliseconds that INT8 saves on each layer, and those of the whole float model, as profiles tell."""
        normalized = self.answers.path(("normalized", sha256(int8)), ".onnx")  # with the INT8 file's names
        save_model(variants.model, normalized)
        before, after = self.engine.profile(normalized), self.engine.profile(int8)
        return variants.gains(before, after), sum(run.time_ms or 0.0 for run in before)

    def _without_slow(self, files: Files, recipe: Variant, gains: Mapping[str, float], whole_ms: float) -> None:
        """Whole INT8 passed; the layers that it made slower may be float."""
        slow = frozenset(layer for layer, gain in gains.items() if gain < -_SLOWER * whole_ms)
        if slow and len(slow) < len(files.variants.layers):
            self._int8(f"INT8 but for {_layers(slow)} that it made slower", files, recipe, slow)

    def _mixed(self, files: Files, recipe: Variant, gains: Mapping[str, float]) -> None:
        """Whole INT8 lost too much: put back to float what makes most error, also for the time it saves."""
        variants = files.variants
        noises = files.noises(recipe.algo, self.answers)
        least = 0.02 * max(max(gains.values(), default=1.0), 1e-6)  # a layer that saves nothing goes first
        worth = {layer: noises[layer] / max(gains.get(layer, least), least) for layer in noises}
        known: dict[frozenset[str], bool] = {}

        def passes(float_layers: frozenset[str]) -> bool:
            if float_layers not in known:
                name = f"INT8 but for {_layers(float_layers)}"
                known[float_layers] = self._within(self._int8(name, files, recipe, float_layers))
            return known[float_layers]

        for value in (worth, noises):  # a profile is noisy, and the two orders fail on different models
            order = sorted(value, key=lambda layer: -value[layer])
            fewest_float(order[:-1], passes)
        self.layers = [Layer(name, noises[name], gains.get(name)) for name in variants.layers]

    def race(self, pick_ms: float | None = None) -> tuple[tuple[Candidate, ...], _Entry]:
        """Time the candidates within the drop: all candidates, and the fastest of them.

        With ``pick_ms`` all take part, and the most accurate one that is as fast is chosen.

        Each is timed alone, those beyond the drop too, for the front; the fastest few within it then race
        against FP32, in turns. Of those that are equally fast the most accurate one is chosen.
        """
        let_in = [entry for entry in self.entries if self._within(entry) or pick_ms is not None]
        beyond = [entry for entry in self.entries if entry not in let_in]
        beyond = sorted(beyond, key=lambda entry: entry.candidate.drop)[:_BEYOND]
        times = {id(entry): latency(self._timed([entry], _FEWEST)[0]) for entry in (*let_in, *beyond)}
        others = sorted(let_in[1:], key=lambda entry: times[id(entry)].median)[:_RACERS]
        racers = [let_in[0], *others]
        once = sum(times[id(entry)].median for entry in racers) / 1e3
        repeat = int(np.clip(_RACE_SECONDS / max(once, 1e-6), _FEWEST, _MOST))
        rows = self._timed(racers, repeat)
        times |= {id(entry): latency(row) for entry, row in zip(racers, rows, strict=True)}
        limit = _EQUAL * min(times[id(entry)].median for entry in racers)
        fastest = [entry for entry in racers if times[id(entry)].median <= limit]
        if pick_ms is not None:
            fastest = [entry for entry in let_in if times[id(entry)].median <= pick_ms] or fastest
        chosen = min(fastest, key=lambda entry: (entry.candidate.drop, times[id(entry)].median))
        self.raced = _race_of(racers, rows, chosen)
        timed = tuple(replace(one.candidate, latency_ms=times.get(id(one))) for one in self.entries)
        return timed, chosen

    def _timed(self, entries: Sequence[_Entry], repeat: int) -> np.ndarray:
        """Milliseconds, float64 (entries, repeat)."""
        threads, name = self.engine.threads, self.engine.name

        def timed() -> list[list[float]]:
            sessions = [
                open_session(one.path, name, threads=threads, precision=one.candidate.precision)
                for one in entries
            ]
            pairs = [(session, self.engine.feed(session)) for session in sessions]
            return interleaved(pairs, warmup=_WARMUP, repeat=repeat).tolist()

        asked = ("times", [(sha256(one.path), one.candidate.precision) for one in entries], repeat)
        return np.array(self.answers.of(asked, list[list[float]], timed))

    def deliver(self, chosen: _Entry, output: Path) -> EngineResult | None:
        """The engine's verdict on the chosen file where it is INT8; then the file in its place."""
        verdict = None if chosen.verdict is None else chosen.verdict(chosen.path)
        if verdict is not None and self.raced is not None:  # a result has one race alone
            verdict = replace(verdict, times=self.raced)
        model = read_onnx(chosen.path)
        ask_precision(model, chosen.candidate.precision)
        save_model(model, output)
        if ranges_path(chosen.path).is_file():
            with atomic_path(ranges_path(output)) as temporary:
                shutil.copyfile(ranges_path(chosen.path), temporary)
        else:
            ranges_path(output).unlink(missing_ok=True)  # those of another file that stood here
        return verdict


def _race_of(racers: Sequence[_Entry], rows: np.ndarray, chosen: _Entry) -> Race | None:
    """The race as the verdict tells it: FP32, BF16 and the chosen INT8 file; None where that is not INT8."""
    if chosen.verdict is None or not any(entry is chosen for entry in racers):
        return None
    named = {"fp32": rows[0]}
    for entry, row in zip(racers, rows, strict=True):
        if entry is chosen:
            named["int8"] = row
        elif entry.verdict is None and entry.candidate.precision == "bf16":
            named["bf16"] = row
    return Race.of(named)


def _layers(names: frozenset[str]) -> str:
    """One or two by name, more by number; the result has them all."""
    return " and ".join(sorted(names)) if len(names) < 3 else f"{len(names)} layers"
