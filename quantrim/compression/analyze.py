"""What each layer costs in INT8 alone, and the fewest layers to keep float for a metric that must be reached.

The statistics are read once; every question after that is a file that is written from them and judged on the
engine. Answers are kept as they come, so that an analysis that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantrim.compression.judge import Judge, agreement_judge
from quantrim.compression.search import fewest_float
from quantrim.compression.spool import Spool
from quantrim.compression.variants import Variant, Variants
from quantrim.engines import EngineName, open_session, require_engine
from quantrim.engines.machine import describe_machine
from quantrim.errors import CheckpointError, ConfigError, did_you_mean
from quantrim.files import write_json
from quantrim.graph import normalize, prove_equal, read_onnx
from quantrim.graph.feeds import IMAGENET, ImagePreprocess, calibration_feeds, kept_batches
from quantrim.graph.load import as_onnx
from quantrim.graph.peek import peekable
from quantrim.graph.ports import input_ports
from quantrim.judges import Judging
from quantrim.post_training import PtqConfig
from quantrim.scratch import scratch_folder
from quantrim.targets import target_named

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Whole INT8 by every estimator; one file and one judgement each, from the same statistics.
GRID = (
    Variant("mse"), Variant("kl"), Variant("emd"), Variant("avg"), Variant("min_max"), Variant("hist"),
    Variant("hist", hist_percent=0.9999), Variant("hist", hist_percent=0.999),
)  # fmt: skip
#: How layers are ranked.
RANKINGS = ("noise", "metric")


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer costs when it alone runs in INT8.

    Attributes:
        name: of its node.
        module: path of its module, where the file tells.
        op: canonical operator.
        sqnr_db: signal to noise at the outputs on a few batches, decibel.
        points: of the metric; None where layers are ranked by noise.
    """

    name: str
    module: str
    op: str
    sqnr_db: float
    points: float | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """What :func:`analyze` found.

    Attributes:
        engine: where everything was judged.
        metric: its name; all points are of it, 0 to 100.
        images: that it is measured on.
        float_points: of the float file.
        int8_points: of whole INT8, by estimator.
        variant: the estimator that is best, which the layers and the search use.
        layers: costliest first.
        target: points to reach; None where none were asked for.
        skip: nodes to keep float for that; None where not even all of them suffice, or nothing was asked for.
        points: of the file with these layers float.
        seconds: of this run.
    """

    engine: str
    metric: str
    images: int
    float_points: float
    int8_points: dict[str, float]
    variant: str
    layers: tuple[LayerCost, ...]
    target: float | None
    skip: tuple[str, ...] | None
    points: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"command": "analyze", **asdict(self), "machine": describe_machine().to_json()}


def analyze(
    model: str | Path | torch.nn.Module,
    data: Any,
    *,
    engine: EngineName = "openvino",
    judge: Judge | None = None,
    judging: Judging | None = None,
    samples: int = 100,
    judged: int = 200,
    variants: Sequence[Variant] = (Variant(),),
    ranking: Literal["noise", "metric"] = "noise",
    target: float | None = None,
    skip: Sequence[str] = (),
    state: str | Path | None = None,
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray] = IMAGENET,
    input_shape: tuple[int, ...] | None = None,
    example_inputs: Any = None,
    on_answer: Callable[[str, float], None] = lambda question, answer: None,
) -> Analysis:
    """Say what INT8 costs as a whole and layer by layer, and what to keep float for a metric.

    Args:
        model: .onnx file, Paddle inference model folder, or nn.Module.
        data: images (see :func:`quantrim.graph.feeds.calibration_feeds`): some calibrate, and without a
            ``judge`` the others tell how well a file agrees with FP32.
        engine: that judges; its own target places the quantizers.
        judge: a metric of labelled data; agreement with FP32 by default.
        judging: without a ``judge``: how outputs are read.
        samples: that calibrate.
        judged: that judge without a ``judge``.
        variants: estimators to try on the whole; the best one is analysed. :data:`GRID` is all of them.
        ranking: "noise" at the outputs (cheap), or the "metric" itself, a judgement a layer.
        target: points that must be reached; the fewest layers are sought that must stay float for it.
        skip: globs on node names that stay float whatever happens.
        state: JSON file of answers, written as they come; one of the same question is gone on with.
        preprocess: for image files.
        input_shape: shape of the first input where axes other than the batch are dynamic.
        example_inputs: for an nn.Module.
        on_answer: called with each question and its points, or decibels.

    Raises:
        CheckpointError: ``state`` is of another model, other data or other settings.
        ModelError, DataError, ConfigError, EngineError: one line each that says what is wrong.
    """
    if ranking not in RANKINGS:
        raise ConfigError(f"ranking {ranking!r}{did_you_mean(ranking, RANKINGS)}", field="ranking")
    if target is not None and not 0 <= target <= 100:
        raise ConfigError(f"target is {target:g}; it counts points, 0 to 100.", field="target")
    if not variants:
        raise ConfigError("variants is empty; give at least one estimator.", field="variants")
    require_engine(engine)
    start = time.perf_counter()
    with scratch_folder() as folder:
        data = peekable(data)
        source = as_onnx(model, folder, example_inputs, data, input_shape)
        original = read_onnx(source)
        feeds = calibration_feeds(
            data, input_ports(original), samples=samples + (0 if judge else judged),
            batch_size=PtqConfig().batch_size, preprocess=preprocess, shape=input_shape,
        )  # fmt: skip
        calibration, held = Spool.of(feeds, folder).split(samples)
        normalized = normalize(original)
        prove_equal(original, normalized, next(iter(calibration)))
        session = open_session(source, engine)
        found = judge or agreement_judge(session, held.__iter__, judging or Judging())
        kept = list(islice(calibration, kept_batches(next(iter(calibration)))))
        files = Variants(normalized, target_named(engine), calibration.__iter__, kept, skip)
        digest = hashlib.sha256(source.read_bytes())
        for feed in calibration:
            for array in feed.values():
                digest.update(array.tobytes())
        digest.update(json.dumps([engine, found.name, found.images, list(skip)]).encode())
        answers = _Answers.of(None if state is None else Path(state), digest.hexdigest(), on_answer)
        float_points = answers.of_question("float", lambda: found.points(session))
        questions = _Questions(files, found, engine, folder, answers)
        return questions.analysis(variants, ranking, target, float_points, start)


@dataclass(frozen=True, slots=True)
class _Answers:
    """Answers by question, on disk where a file was named."""

    path: Path | None
    key: str
    known: dict[str, float]
    told: Callable[[str, float], None]

    @classmethod
    def of(cls, path: Path | None, key: str, told: Callable[[str, float], None]) -> _Answers:
        """Those of an earlier run of the same questions."""
        if path is None or not path.exists():
            return cls(path, key, {}, told)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stored, known = content["key"], {str(k): float(v) for k, v in content["answers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: no state of an analysis. Remove it, or name another.") from error
        if stored != key:
            raise CheckpointError(
                f"{path}: the state of an analysis of another model, other data or other settings. Remove it, "
                "or name another."
            )
        return cls(path, key, known, told)

    def of_question(self, question: str, find: Callable[[], float]) -> float:
        """The answer, found where it is not known yet."""
        if question not in self.known:
            self.known[question] = find()
            if self.path is not None:
                write_json(self.path, {"key": self.key, "answers": self.known})
            self.told(question, self.known[question])
        return self.known[question]


@dataclass(frozen=True, slots=True)
class _Questions:
    """What can be asked of a model in INT8."""

    files: Variants
    judge: Judge
    engine: EngineName
    folder: Path
    answers: _Answers

    def analysis(
        self,
        variants: Sequence[Variant],
        ranking: str,
        target: float | None,
        float_points: float,
        start: float,
    ) -> Analysis:
        whole = {one.name: self.points(one, frozenset()) for one in variants}
        best = max(variants, key=lambda one: whole[one.name])
        layers = sorted(self._layers(best, ranking), key=lambda one: (_lost(one), -one.sqnr_db), reverse=True)
        float_layers, reached = None, None
        if target is not None:
            order = [one.name for one in layers]
            float_layers = self._fewest(best, order, target, whole[best.name])
            reached = None if float_layers is None else self.points(best, float_layers)
        return Analysis(
            engine=self.engine,
            metric=self.judge.name,
            images=self.judge.images,
            float_points=float_points,
            int8_points=whole,
            variant=best.name,
            layers=tuple(layers),
            target=target,
            skip=None if float_layers is None else tuple(sorted(float_layers)),
            points=reached,
            seconds=time.perf_counter() - start,
        )

    def points(self, variant: Variant, kept: frozenset[str], alone: str = "") -> float:
        """Points of a file with these layers float; ``alone`` names the only one that is not."""

        def find() -> float:
            path = self.folder / "asked.onnx"
            self.files.write(path, variant, kept)
            return self.judge.points(open_session(path, self.engine))

        which = f" | {alone} alone" if alone else f" | float: {' '.join(sorted(kept))}" if kept else ""
        return self.answers.of_question(variant.name + which, find)

    def _layers(self, variant: Variant, ranking: str) -> list[LayerCost]:
        nodes = {node.name: node for node in self.files.graph.nodes}
        found = []
        for layer in self.files.layers:
            noise = self.answers.of_question(
                f"noise {variant.algo} | {layer}", partial(self._decibels, layer, variant)
            )
            others = frozenset(self.files.layers) - {layer}
            points = self.points(variant, others, layer) if ranking == "metric" else None
            found.append(LayerCost(layer, nodes[layer].module, nodes[layer].op, noise, points))
        return found

    def _decibels(self, layer: str, variant: Variant) -> float:
        return -10 * math.log10(max(self.files.noise_alone(layer, variant.algo), 1e-12))

    def _fewest(
        self, variant: Variant, order: Sequence[str], target: float, whole: float
    ) -> frozenset[str] | None:
        """Layers to keep float; empty where whole INT8 reaches the target."""
        if whole >= target:
            return frozenset()
        return fewest_float(order[:-1], lambda kept: self.points(variant, kept) >= target)


def _lost(layer: LayerCost) -> float:
    """For sorting: what the metric loses, where it was asked."""
    return 0.0 if layer.points is None else -layer.points
