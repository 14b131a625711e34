"""The file before the engines; and where they speak against it, what would have been better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quantrim.engines import EngineName, open_session
from quantrim.engines.compare import compare
from quantrim.engines.inspect import LayerError, layer_errors, worst_layers
from quantrim.engines.trial import EngineResult, ask
from quantrim.errors import EngineError, ModelError
from quantrim.graph import Graph, read_onnx
from quantrim.judges import Judgement
from quantrim.placement.quantized import Quantized
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.quantize import save_quantized
from quantrim.post_training.source import Judged
from quantrim.ranges import Algo

#: Estimators that are tried in place of one whose file is not faithful.
_OTHERS: tuple[Algo, ...] = ("mse", "min_max", "kl")
#: Batches on which layers are looked at, and changes tried.
_BATCHES = 4
#: Decibel by which a change must be better to be told.
_BETTER_DB = 3.0


@dataclass(frozen=True, slots=True)
class Advice:
    """A change of the settings that the run tried and found to be better.

    Attributes:
        field: of :class:`PtqConfig`.
        value: that it was given.
        engine: where it was tried.
        sqnr_db: of the output that agrees least, with it.
        faithful: whether that would be enough.
    """

    field: str
    value: str | tuple[str, ...]
    engine: EngineName
    sqnr_db: float
    faithful: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a model.

    Attributes:
        graph: view of the float model that was quantized.
        float_nodes: linear nodes that stay float → reason.
        refined: refinements that were kept.
        histograms: of the quantized tensors.
        model: the normalised float model that the file was made of; None where it stayed float.
    """

    graph: Graph
    float_nodes: Mapping[str, str]
    refined: tuple[str, ...] = ()
    histograms: tuple[dict[str, Any], ...] = ()
    model: ir.Model | None = None


@dataclass(frozen=True, slots=True)
class Hearing:
    """A quantized file, and all that is needed to judge it and to make another.

    Attributes:
        float_path: the FP32 file.
        made: what the file holds.
        judged: what it is judged on.
        config: settings that it was made with.
        requantize: makes another with other settings, from the first calibration batches.
        core: float and quantized file that end where outputs can be compared; None for the files themselves.
    """

    float_path: Path
    made: Made
    judged: Judged
    config: PtqConfig
    requantize: Callable[[PtqConfig], Quantized]
    core: Callable[[Path], tuple[Path, Path] | None]

    def of(
        self, staged: Path, engines: Sequence[EngineName], output: Path
    ) -> tuple[tuple[EngineResult, ...], tuple[Advice, ...], tuple[LayerError, ...]]:
        """Every engine's result; advice and the worst layers where one of them is not faithful.

        Args:
            staged: the file, not yet where it shall stand.
            engines: to ask.
            output: the name that errors shall tell.

        Raises:
            EngineError: an engine refuses the file.
        """
        graph, planned = self.made.graph, self.made.float_nodes
        judging, held_out = self.config.judging, self.judged.held_out
        compared = self.core(staged)
        try:
            results = tuple(
                ask(
                    engine, self.float_path, staged, graph, planned, self.judged.feeds, self.config.threads,
                    judging=judging, held_out=held_out, compared=compared,
                )
                for engine in engines
            )  # fmt: skip
        except EngineError as error:
            raise EngineError(str(error).replace(str(staged), str(output))) from error
        failed = next((one for one in results if not one.faithful), None)
        if failed is None or self.made.model is None:
            return results, (), ()
        errors = layer_errors(self.made.model, read_onnx(staged), self.judged.feeds[:_BATCHES])
        worst = worst_layers(errors)
        return results, self._advice(failed, staged, worst), tuple(worst)

    def _advice(self, failed: EngineResult, staged: Path, worst: Sequence[LayerError]) -> tuple[Advice, ...]:
        engine, found = failed.verdict.engine, []
        now = self._judgement(staged, engine)
        for field, value, config in self._changes(engine, worst):
            path = staged.with_name("other.onnx")
            try:
                save_quantized(self.requantize(config), config.rules, path)
                judgement = self._judgement(path, engine)
            except (ModelError, EngineError):  # a change that can't be made, or that the engine refuses
                continue
            gain = judgement.outputs[0].sqnr_db - now.outputs[0].sqnr_db
            if judgement.faithful or gain > _BETTER_DB:
                decibel = judgement.outputs[0].sqnr_db
                found.append(Advice(field, value, engine, decibel, judgement.faithful))
            if judgement.faithful:
                break
        return tuple(sorted(found, key=lambda one: (not one.faithful, -one.sqnr_db)))

    def _judgement(self, path: Path, engine: EngineName) -> Judgement:
        expected, got = self.core(path) or (self.float_path, path)
        return compare(
            open_session(expected, engine),
            open_session(got, engine),
            self.judged.feeds[:_BATCHES],
            self.config.judging,
        )

    def _changes(
        self, engine: EngineName, worst: Sequence[LayerError]
    ) -> Iterator[tuple[str, str | tuple[str, ...], PtqConfig]]:
        """Fields, their other values, and the settings with them; the likeliest first."""
        config = self.config
        if config.target not in (engine, "tensorrt"):
            yield "target", engine, replace(config, target=engine)
        if "equalize" not in config.refinements:
            refinements = ("equalize", *config.refinements)
            yield "refinements", refinements, replace(config, refinements=refinements)
        for algo in _OTHERS:
            if algo != config.algo:
                yield "algo", algo, replace(config, algo=algo)
        nodes = {node.name: node.module or node.name for node in self.made.graph.nodes}
        names = tuple(dict.fromkeys(nodes[one.node] for one in worst if one.node in nodes))
        if names:
            yield "skip", names, replace(config, skip=(*config.skip, *names))
