"""The file before the engines; and where they speak against it, what would have been better."""

from __future__ import annotations

import glob
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
from quantrim.judges.bars import CLEAR_DB
from quantrim.placement.quantized import Quantized
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.quantize import save_quantized
from quantrim.post_training.source import Judged
from quantrim.ranges import Algo

#: Estimators that are tried in place of one whose file is not faithful.
_OTHERS: tuple[Algo, ...] = ("mse", "min_max", "kl")
#: Batches on which layers are looked at, and changes tried.
_BATCHES = 4
#: Layers that a file may keep float beside those that the settings name, where an engine can't have them.
_MOST_FLOAT = 4
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


class RefusedError(EngineError):
    """An engine refuses a quantized file and takes the float one.

    Attributes:
        layers: those that, kept float, make a file that it takes; empty where none were found.
    """

    def __init__(self, message: str, layers: tuple[str, ...]) -> None:
        super().__init__(message)
        self.layers = layers


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
        folder: gets the files that are tried.
        core: float and quantized file that end where outputs can be compared; None for the files themselves.
    """

    float_path: Path
    made: Made
    judged: Judged
    config: PtqConfig
    requantize: Callable[[PtqConfig], Quantized]
    folder: Path
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
        results = []
        for engine in engines:
            try:
                results.append(
                    ask(
                        engine, self.float_path, staged, graph, planned, self.judged.feeds, self.config.threads,
                        judging=judging, held_out=held_out, compared=compared,
                    )
                )  # fmt: skip
            except EngineError as error:
                raise self._refusal(engine, str(error).replace(str(staged), str(output))) from error
        failed = next((one for one in results if not one.faithful), None)
        if failed is None or self.made.model is None:
            return tuple(results), (), ()
        errors = layer_errors(self.made.model, read_onnx(staged), self.judged.feeds[:_BATCHES])
        worst = worst_layers(errors)
        return tuple(results), self._advice(failed, staged, worst), tuple(worst)

    def _refusal(self, engine: EngineName, told: str) -> EngineError:
        """The engine's error, with the layers that it could not take in INT8 where the float file loads."""
        try:
            open_session(self.float_path, engine)
        except EngineError:
            return EngineError(told)
        return RefusedError(told, self._culprits(engine))

    def _advice(self, failed: EngineResult, staged: Path, worst: Sequence[LayerError]) -> tuple[Advice, ...]:
        engine, found = failed.verdict.engine, []
        now = self._judgement(staged, engine)
        layers = () if failed.contradicted else tuple(one.node for one in worst)
        for field, value, config in self._changes(engine, layers):
            judgement = self._tried(config, engine)
            if judgement is None or (failed.contradicted and judgement.outputs[0].sqnr_db < CLEAR_DB):
                continue
            gain = judgement.outputs[0].sqnr_db - now.outputs[0].sqnr_db
            if judgement.faithful or gain > _BETTER_DB:
                decibel = judgement.outputs[0].sqnr_db
                found.append(Advice(field, value, engine, decibel, judgement.faithful))
            if judgement.faithful:
                break
        return tuple(sorted(found, key=lambda one: (not one.faithful, -one.sqnr_db)))

    def _tried(self, config: PtqConfig, engine: EngineName) -> Judgement | None:
        """Judgement of a file with other settings; None where it can't be made, or the engine refuses it."""
        path = self.folder / "other.onnx"
        try:
            save_quantized(self.requantize(config), config.rules, path)
            return self._judgement(path, engine)
        except (ModelError, EngineError):
            return None

    def _culprits(self, engine: EngineName) -> tuple[str, ...]:
        """The nodes that spoil everything in INT8, or that an engine refuses; empty where they are not found.

        By halves: what is kept float shrinks as long as the engine's answers are right. One culprit among n
        layers is found with about log2(n) files.
        """

        def right(layers: Sequence[str]) -> bool:
            judgement = self._tried(replace(skipping(self.config, layers), refinements=()), engine)
            good = judgement is not None and judgement.faithful
            return good and judgement is not None and judgement.outputs[0].sqnr_db > CLEAR_DB

        suspects = [node.name for node in self.made.graph.nodes if node.name not in self.made.float_nodes]
        while len(suspects) > 1:
            half = len(suspects) // 2
            parts = (part for part in (suspects[:half], suspects[half:]) if right(part))
            smaller = next(parts, None)
            if smaller is None:
                break
            suspects = smaller
        return tuple(suspects) if len(suspects) <= _MOST_FLOAT else ()

    def _judgement(self, path: Path, engine: EngineName) -> Judgement:
        expected, got = self.core(path) or (self.float_path, path)
        return compare(
            open_session(expected, engine),
            open_session(got, engine),
            self.judged.feeds[:_BATCHES],
            self.config.judging,
        )

    def _changes(
        self, engine: EngineName, layers: Sequence[str]
    ) -> Iterator[tuple[str, str | tuple[str, ...], PtqConfig]]:
        """Fields, their other values, and the settings with them; what changes least of the request first."""
        config = self.config
        if "equalize" not in config.refinements:
            refinements = ("equalize", *config.refinements)
            yield "refinements", refinements, replace(config, refinements=refinements)
        for count in range(1, len(layers) + 1):
            yield "skip", tuple(layers[:count]), skipping(config, layers[:count])
        culprits = self._culprits(engine)
        if culprits:
            yield "skip", culprits, skipping(config, culprits)
        if config.target not in (engine, "tensorrt"):
            yield "target", engine, replace(config, target=engine)
        for algo in _OTHERS:
            if algo != config.algo:
                yield "algo", algo, replace(config, algo=algo)


def skipping(config: PtqConfig, layers: Sequence[str]) -> PtqConfig:
    """The settings, with some layers kept float."""
    return replace(config, skip=(*config.skip, *map(glob.escape, layers)))
