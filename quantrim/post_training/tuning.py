"""The fastest form of a model by the engine's clock: its rewrites, and the precision of its layers.

First the rewrites, raced on INT8 files. Then the precision: the whole model in INT8, in BF16 and in FP32, INT8
with its float parts in BF16, and INT8 without the layers that it made slower; each is raced against the fastest
so far, so that the outcome is never slower than the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quantrim.engines import EngineName, Precision
from quantrim.engines.verdict import layer_times
from quantrim.graph import graph_from_onnx
from quantrim.graph.ops import PRODUCT_OPS
from quantrim.graph.ports import Feed
from quantrim.graph.session import save_model
from quantrim.placement import place
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.drafts import DraftFiles
from quantrim.rewrites import Memory, Trial, Tuned, tune
from quantrim.rewrites.contest import Contest, Entrant
from quantrim.rewrites.files import engines_have_bf16
from quantrim.rewrites.tuner import digest, one_sample

#: Runs whose mean says what a layer takes.
_PROFILED_RUNS = 5
#: A layer got slower when INT8 costs it more than this share of the whole float model's time.
_SLOWER = 0.002


@dataclass(frozen=True, slots=True)
class Choice:
    """The form of a model that was fastest.

    Attributes:
        model: normalised float model, rewritten.
        rewrites: what was tried.
        winner: name of the fastest precision, such as "INT8" or "BF16".
        int8: whether anything of it runs in INT8.
        precision: of the layers that don't.
        float_layers: layers that are faster in float.
        layout: time of the rewritten float model over that of the original one, by engine, where raced.
    """

    model: ir.Model
    rewrites: Tuned
    winner: str = "INT8"
    int8: bool = True
    precision: Precision = "f32"
    float_layers: frozenset[str] = frozenset()
    layout: tuple[tuple[EngineName, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            **self.rewrites.to_json(),
            "winner": self.winner,
            "precision": self.precision,
            "float_layers": sorted(self.float_layers),
            "layout_ratio": dict(self.layout),
        }


def choose_form(
    model: ir.Model,
    kept: Sequence[Feed],
    config: PtqConfig,
    folder: Path,
    *,
    memory: Memory | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Choice:
    """Rewrites and precision of a model, chosen on the engines that it is for.

    Args:
        model: normalised float model.
        kept: calibration batches; the first gives shapes, ranges of trial files, and the input of races.
        config: target, engines, threads and ``tune_seconds``.
        folder: for trial files.
        memory: answers of earlier races.
        on_trial: called with each rewrite that was tried.
    """
    engines = config.asked_engines()
    drafts = DraftFiles(folder, kept[0], config)
    if not engines:
        return Choice(model, Tuned(model))
    memory = memory or Memory(None)
    tuned = tune(
        model, kept[:1], drafts.write, engines, kind=f"int8 {config.target}", threads=config.threads,
        seconds=config.tune_seconds, memory=memory, on_trial=on_trial,
    )  # fmt: skip
    feed = one_sample(model, kept[0])
    contest = Contest(engines, config.threads, feed, memory, f"{config.target} {digest(tuned.model)}")
    return _Precisions(tuned, drafts, contest, folder, config).choose(model)


class _Precisions:
    """Files of one rewritten model in every precision, and the race between them."""

    def __init__(
        self, tuned: Tuned, drafts: DraftFiles, contest: Contest, folder: Path, config: PtqConfig
    ) -> None:
        self.tuned, self.drafts, self.contest, self.config = tuned, drafts, contest, config
        self.float_file = folder / "float_rewritten.onnx"
        save_model(tuned.model, self.float_file)
        self.layers: dict[Entrant, frozenset[str]] = {}

    def choose(self, original: ir.Model) -> Choice:
        """Race everything, fastest first where that can be told."""
        champion = whole = self._entrant("INT8", self.drafts.write(self.tuned.model))
        for challenger in self._challengers(whole):
            if self.contest.beats(challenger, champion):
                champion = challenger
        mixed = self._without_slow(whole, champion.precision)
        if mixed is not None and self.contest.beats(mixed, champion):
            champion = mixed
        return Choice(
            model=self.tuned.model,
            rewrites=self.tuned,
            winner=champion.name,
            int8=champion.path != self.float_file,
            precision=champion.precision,
            float_layers=self.layers[champion],
            layout=tuple(self._layout(original)),
        )

    def _entrant(
        self, name: str, path: Path, precision: Precision = "f32", layers: frozenset[str] = frozenset()
    ) -> Entrant:
        entrant = Entrant(name, path, precision)
        self.layers[entrant] = layers
        return entrant

    def _challengers(self, whole: Entrant) -> Iterator[Entrant]:
        if engines_have_bf16(self.contest.engines):
            yield self._entrant("INT8 and BF16", whole.path, "bf16")
            yield self._entrant("BF16", self.float_file, "bf16")
        yield self._entrant("FP32", self.float_file)

    def _without_slow(self, whole: Entrant, precision: Precision) -> Entrant | None:
        """INT8 without the layers that are slower in it than in the float type that won; None for none."""
        slow = self._made_slower(whole, precision)
        if not slow:
            return None
        path = self.drafts.write(self.tuned.model, sorted(slow))
        word = {"f32": "FP32", "bf16": "BF16"}[precision]
        return self._entrant(f"INT8 but for {len(slow)} layers in {word}", path, precision, slow)

    def _made_slower(self, whole: Entrant, precision: Precision) -> frozenset[str]:
        """Layers that an engine's profile shows slower in INT8 than in a float type."""
        engine = self.contest.engines[0]
        graph = graph_from_onnx(self.tuned.model, self.contest.feed)
        plan = place(graph, self.config.rules, self.config.selection)
        layers = [node.name for node in graph.nodes if node.name in plan.int8_nodes and node.op in PRODUCT_OPS]
        before, after = (
            self.contest.session(engine, path, precision).layers(self.contest.feed, _PROFILED_RUNS)
            for path in (self.float_file, whole.path)
        )
        least = _SLOWER * sum(run.time_ms or 0.0 for run in before)
        floats, codes = layer_times(graph, layers, before), layer_times(graph, layers, after)
        slow = [one for one in layers if one in floats and one in codes and codes[one] > floats[one] + least]
        return frozenset(slow) if len(slow) < len(layers) else frozenset()

    def _layout(self, original: ir.Model) -> Iterator[tuple[EngineName, float]]:
        """What the rewrites alone bring to the FP32 file."""
        if not self.tuned.sites:
            return
        path = self.float_file.with_name("float_original.onnx")
        save_model(original, path)
        contest = replace(self.contest, subject=f"{digest(original)} {digest(self.tuned.model)}")
        for engine in contest.engines:
            answer = contest.race(engine, Entrant("original FP32", path), Entrant("FP32", self.float_file))
            if answer is not None:
                yield engine, answer.ratio
