"""Post-training quantization: any vision model in, a verified INT8 file out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from quantrim.engines import EngineName, Session, open_session
from quantrim.engines.inspect import LayerError
from quantrim.engines.machine import describe_machine
from quantrim.engines.trial import EngineResult
from quantrim.errors import ConfigError, ModelError
from quantrim.files import require_onnx_output, size_mb
from quantrim.graph import graph_from_onnx, normalize, prove_equal, read_onnx
from quantrim.graph.core import comparable, ending_at
from quantrim.graph.feeds import IMAGENET, ImagePreprocess
from quantrim.graph.load import as_onnx
from quantrim.graph.peek import peekable
from quantrim.graph.ports import Feed, samples_in
from quantrim.graph.session import RunError, save_model
from quantrim.journal import Journal, journal_beside
from quantrim.placement import Plan, place
from quantrim.placement.quantized import Quantized
from quantrim.post_training.calibrate import collect
from quantrim.post_training.config import PtqConfig, ptq_config, require_overrides_match
from quantrim.post_training.deliver import deliver
from quantrim.post_training.hearing import Advice, Hearing, Made, RefusedError, skipping
from quantrim.post_training.quantize import (
    decide,
    first_samples,
    held_apart,
    is_better,
    means_for,
    refine,
    save_quantized,
)
from quantrim.post_training.refine import REFINEMENTS, Refinement, equalize
from quantrim.post_training.refine.means import MEAN_SAMPLES
from quantrim.post_training.resume import remembered, saved_pass
from quantrim.post_training.shards import Sketches, require_made_for
from quantrim.post_training.source import CalibrationSource
from quantrim.post_training.synthesis import DataFree
from quantrim.post_training.tuning import Choice, choose_form
from quantrim.post_training.veto import settled_plan
from quantrim.ranges import Sketch
from quantrim.rewrites import Memory, Trial, Tuned
from quantrim.rewrites.files import ask_precision
from quantrim.scratch import scratch_folder

if TYPE_CHECKING:
    import torch

#: Samples that tell whether a refinement lowers the error at the outputs.
_JUDGING_SAMPLES = 8
_ONE_BY_ONE = "The model takes one sample at a time, though its batch axis is open; so it was calibrated."


@dataclass(frozen=True, slots=True)
class PtqResult:
    """Result of :func:`ptq`.

    Attributes:
        output: path of the INT8 file.
        seconds: time of quantization itself, without the verdict.
        samples: calibration samples used.
        size_mb: file sizes, "fp32" and "int8".
        algo: range estimator.
        refined: refinements that were kept.
        normalization_error: relative L2 distance that normalising caused (rounding).
        engines: verdicts; the first engine of the target comes first.
        notes: what to know of the calibration data.
        advice: where the file is not faithful: changes that the run found to be better, best first.
        worst: likewise: the layers that lose most.
        histograms: activation histograms with the chosen ranges, for the report.
        tuning: what was tried to make it faster, and what won; None where nothing was asked for.
        metric: what ``evaluate`` says of both files, "fp32" and "int8"; None without.
    """

    output: str
    seconds: float
    samples: int
    size_mb: Mapping[str, float]
    algo: str
    target: str
    refined: tuple[str, ...]
    normalization_error: float
    engines: tuple[EngineResult, ...]
    notes: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()
    worst: tuple[LayerError, ...] = ()
    histograms: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    tuning: dict[str, Any] | None = None
    metric: Mapping[str, float] | None = None

    @property
    def faithful(self) -> bool:
        """Whether the file may be deployed on every engine that was asked."""
        return all(one.faithful for one in self.engines)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON schema; verdict and latency of the first engine stand at the top."""
        first = self.engines[0] if self.engines else None
        value: dict[str, Any] = {
            "command": "ptq",
            "output": self.output,
            "seconds": round(self.seconds, 3),
            "samples": self.samples,
            "algo": self.algo,
            "target": self.target,
            "refined": list(self.refined),
            "size_mb": dict(self.size_mb),
            "normalization_error": self.normalization_error,
            "notes": list(self.notes),
            "advice": [one.to_json() for one in self.advice],
            "worst": [asdict(one) for one in self.worst],
        }
        if first is not None:
            value |= first.to_json()
        value["faithful"] = self.faithful if first is not None else None
        value["engines"] = [result.to_json() for result in self.engines]
        value["histograms"] = list(self.histograms)
        if self.tuning is not None:
            value["tuning"] = self.tuning
        if self.metric is not None:
            value["metric"] = dict(self.metric)
        value["machine"] = describe_machine().to_json()
        return value


def ptq(
    model: str | Path | torch.nn.Module,
    data: Any,
    output: str | Path,
    *,
    config: PtqConfig | None = None,
    judge_data: Any = None,
    evaluate: Callable[[Session], float] | None = None,
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray] = IMAGENET,
    example_inputs: Any = None,
    on_batch: Callable[[int], None] | None = None,
    memory: Memory | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    **options: Any,
) -> PtqResult:
    """Quantize a model after training and ask the engines what became of it.

    With ``tune_seconds``, the fastest of whole INT8, BF16, FP32 and mixtures of them is written, with the
    rewrites that the engines run faster: a file that says in its metadata in which precision it was fastest.

    Args:
        model: .onnx file, Paddle inference model folder, or nn.Module.
        data: calibration data (see :func:`quantrim.graph.feeds.calibration_feeds`); what ``config.samples``
            leaves of them judges the file. Or :class:`~quantrim.post_training.DataFree`, where there are none.
        output: INT8 .onnx file, written when the engines have spoken; its ranges stand in ``NAME.ranges.json``
            beside it. A file that is not faithful is named ``NAME.unfaithful.onnx``.
        config: settings; or give fields of :class:`PtqConfig` as keywords, such as ``algo="kl"``.
        judge_data: data to judge on instead.
        evaluate: session → a metric of labelled data, asked of both files on the first engine.
        preprocess: for image files.
        example_inputs: for an nn.Module: tensors to export it with; the first calibration batch by default.
        on_batch: progress callback, called with the number of samples calibrated.
        memory: answers of earlier races, for tuning; of this run alone by default.
        on_trial: called with each rewrite that tuning tried.
        options: fields of :class:`PtqConfig` or :class:`~quantrim.judges.Judging`; they change ``config``.

    Raises:
        ModelError, DataError, ConfigError, EngineError: one line each that says what is wrong.
    """
    config = ptq_config(config, **options)
    asked = config.asked_engines()
    require_onnx_output(output, model)
    with scratch_folder() as folder, journal_beside(output) as journal:
        data = peekable(data)
        given = folder if isinstance(data, DataFree) else data  # files, as what is made from nothing will be
        path = as_onnx(model, folder, example_inputs, given, config.input_shape)
        told = ""
        if isinstance(data, Sketches):
            require_made_for(data, path, config)
        elif isinstance(data, DataFree):
            data, config, told = data.calibration(model, path, config, preprocess, folder)
        maker = _Maker(
            path,
            read_onnx(path),
            folder,
            Path(output),
            data,
            judge_data,
            preprocess,
            on_batch,
            memory,
            on_trial,
            journal,
            told,
        )
        try:
            result, staged, config = _made_first(maker, config, asked)
        except RefusedError as error:
            if not (config.mend and error.layers) or isinstance(data, Iterator):
                raise
            result, staged = maker.make(skipping(config, error.layers), asked, _kept_float(error.layers))
        mended = _mended(config, result)
        if mended is not None and not isinstance(data, Iterator):
            other, other_staged = maker.make(mended[0], asked, mended[1])
            if other.faithful:
                result, staged = other, other_staged
        if evaluate is not None:
            result = replace(result, metric=_metric(evaluate, path, staged, asked))
        return replace(result, output=str(deliver(staged, Path(output), faithful=result.faithful)))


def _metric(
    evaluate: Callable[[Session], float], fp32: Path, int8: Path, asked: Sequence[EngineName]
) -> dict[str, float]:
    """The metric before and after, on the engine that comes first."""
    if not asked:
        raise ConfigError("evaluate needs an engine to run the files on; engines is empty.", field="engines")
    return {name: evaluate(open_session(path, asked[0])) for name, path in (("fp32", fp32), ("int8", int8))}


def _made_first(
    maker: _Maker, config: PtqConfig, asked: Sequence[EngineName]
) -> tuple[PtqResult, Path, PtqConfig]:
    """Result, file, and the settings that it was made with: one sample a pass where the model takes no more.

    A Reshape to a fixed size takes one sample, whatever the open batch axis of the input says.
    """
    try:
        return *maker.make(config, asked), config
    except RunError:
        if config.batch_size == 1 or isinstance(maker.data, Iterator):
            raise
        single = replace(config, batch_size=1)
        return *maker.make(single, asked, _ONE_BY_ONE), single


def _mended(config: PtqConfig, result: PtqResult) -> tuple[PtqConfig, str] | None:
    """Settings that the run found to be enough, and a note that says so; None for none.

    They change nothing that was asked for: equalisation is exact, and a layer that stays float is told.
    """
    if result.faithful or not config.mend:
        return None
    for advice in result.advice:
        if advice.faithful and advice.field == "refinements":
            note = "Mended: without equalisation the file was not faithful."
            return replace(config, refinements=("equalize", *config.refinements)), note
        if advice.faithful and advice.field == "skip":
            layers = advice.value if isinstance(advice.value, tuple) else (advice.value,)
            return skipping(config, layers), _kept_float(layers)
    return None


def _kept_float(layers: Sequence[str]) -> str:
    return f"Mended: in INT8 the file was not faithful; kept float: {', '.join(layers)}."


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes files of one model, and has them judged.

    Attributes:
        path: the float file.
        original: its content.
        folder: gets the files.
        output: the name that was asked for.
        data: calibration data.
        judge_data: data to judge on; None for what calibration leaves.
        preprocess: for image files.
        on_batch: progress callback.
        memory: answers of earlier races.
        on_trial: called with each rewrite that was tried.
        journal: what a killed run had done.
        told: what to know of the data before anything else.
    """

    path: Path
    original: ir.Model
    folder: Path
    output: Path
    data: Any
    judge_data: Any
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray]
    on_batch: Callable[[int], None] | None
    memory: Memory | None
    on_trial: Callable[[Trial], None]
    journal: Journal
    told: str

    def make(self, config: PtqConfig, asked: Sequence[EngineName], note: str = "") -> tuple[PtqResult, Path]:
        """A file in the folder, and the result with its path as the output."""
        start = time.perf_counter()
        source = CalibrationSource.of(self.data, self.original, config, self.preprocess)
        normalized = normalize(self.original)
        error = prove_equal(self.original, normalized, source.kept[0])
        sketched = isinstance(self.data, Sketches)
        counted = self.data if sketched else _Counted(source.calibration, self.on_batch)
        tuned = self._tuned(normalized, source.kept, config) if config.tune_seconds > 0 else None
        form = tuned or Choice(normalized, Tuned(normalized))
        staged = Path(tempfile.mkdtemp(dir=self.folder)) / self.output.name
        made = write_form(form, counted, source.kept, config, staged, self.journal)
        seconds = time.perf_counter() - start

        def again(other: PtqConfig) -> Quantized:
            return quantize(form.model, source.kept, source.kept, other, form.float_layers)[0]

        def core(int8: Path) -> tuple[Path, Path] | None:
            return _cores(normalized, int8, staged.parent)

        hearing = Hearing(self.path, made, source.judged(self.judge_data), config, again, staged.parent, core)
        results, advice, worst = hearing.of(staged, asked, self.output)
        result = PtqResult(
            output=str(staged),
            seconds=seconds,
            samples=counted.samples,
            size_mb={"fp32": size_mb(self.path), "int8": size_mb(staged)},
            algo=config.algo,
            target=config.target,
            refined=made.refined,
            normalization_error=error,
            engines=results,
            notes=(*filter(None, (self.told, note)), *source.notes),
            advice=advice,
            worst=worst,
            histograms=made.histograms,
            tuning=None if tuned is None else tuned.to_json(),
        )
        return result, staged

    def _tuned(self, model: ir.Model, kept: Sequence[Feed], config: PtqConfig) -> Choice:
        return choose_form(model, kept, config, self.folder, memory=self.memory, on_trial=self.on_trial)


def write_form(
    form: Choice,
    feeds: Iterable[Feed],
    kept: Sequence[Feed],
    config: PtqConfig,
    output: Path,
    journal: Journal | None = None,
) -> Made:
    """Calibrate and write the INT8 file; the float file where that was fastest."""
    if not form.int8:
        graph = graph_from_onnx(form.model, kept[0])
        plan = place(graph, config.rules, config.selection)
        ask_precision(form.model, form.precision)
        save_model(form.model, output)
        faster = {name: f"the whole model is faster in {form.winner}" for name in plan.weights}
        return Made(graph, {**plan.float_nodes, **faster})
    quantized, sketches, refined = quantize(form.model, feeds, kept, config, form.float_layers, journal)
    save_quantized(quantized, config.rules, output, form.precision)
    slower = {name: "slower in INT8 on this engine" for name in form.float_layers}
    float_nodes = {**quantized.plan.float_nodes, **slower}
    return Made(quantized.graph, float_nodes, refined, histograms(quantized, sketches), quantized.model)


def quantize(
    model: ir.Model,
    feeds: Iterable[Feed],
    kept: Sequence[Feed],
    config: PtqConfig,
    float_layers: frozenset[str] = frozenset(),
    journal: Journal | None = None,
) -> tuple[Quantized, Mapping[str, Sketch], tuple[str, ...]]:
    """Place, calibrate, choose scales, refine: everything between a normalised model and its file.

    Args:
        model: normalised float model.
        feeds: calibration batches, used once.
        kept: a few of them, for shapes and refinement.
        config: settings; each refinement is kept only where it lowers the error at the outputs.
        float_layers: nodes that stay float beside those that the settings name.
        journal: what a killed run had done, and what this one does.

    Returns:
        The decisions, the sketches, and the names of the refinements that were kept.
    """
    graph = graph_from_onnx(model, kept[0])
    selection = replace(config.selection, float_nodes=float_layers)
    plan = place(graph, config.rules, selection)
    if not plan.weights:
        raise ModelError("no layer of this model can be quantized. " + _why_nothing(plan))
    require_overrides_match(plan, config.overrides)
    chosen = partial(decide, graph=graph, plan=plan, config=config)
    kept_refinements: list[str] = []
    if "equalize" in config.refinements:
        equal = equalize(model, graph)
        observed = (collect(one, plan.groups, kept, shapes=graph.shapes) for one in (model, equal))
        plain, evened = (chosen(one, found) for one, found in zip((model, equal), observed, strict=True))
        if is_better(evened, plain, kept):
            model = equal
            kept_refinements.append("equalize")
    corrects = "bias" in config.refinements and "adaround" not in config.refinements
    fitted, judged = held_apart(kept, _JUDGING_SAMPLES)
    means = means_for(model, graph, plan, fitted) if corrects else None
    if isinstance(feeds, Sketches):
        sketches = feeds.of(plan.groups)
    else:
        saved = None if journal is None else saved_pass(journal, model, plan.groups, kept)
        resumed = saved is not None and bool(saved.sketches)
        sketches = collect(model, plan.groups, feeds, shapes=graph.shapes, means=None if resumed else means,
                           saved=saved)  # fmt: skip
    if means is not None and means.empty:  # others ran the first batches
        collect(model, plan.groups, first_samples(fitted, MEAN_SAMPLES), shapes=graph.shapes, means=means)
    plan = settled_plan(graph, plan, selection, sketches, config)
    quantized = decide(model, sketches, graph=graph, plan=plan, config=config)
    wanted: list[Refinement] = [name for name in REFINEMENTS[1:] if name in config.refinements]
    if wanted:
        refined = refine(quantized, fitted, wanted, means, partial(remembered, journal=journal))
        if is_better(refined, quantized, judged):
            quantized = refined
            kept_refinements += wanted
    return quantized, sketches, tuple(kept_refinements)


def _cores(normalized: ir.Model, output: str | Path, folder: Path) -> tuple[Path, Path] | None:
    """Files of the float and the quantized model that end where a selection by value begins, if one does.

    The float one is normalised, so that both have the tensors that are compared: rewrites are proven on them.
    """
    names = comparable(normalized)
    if names == tuple(str(value.name) for value in normalized.graph.outputs):
        return None
    files = folder / "float_core.onnx", folder / "int8_core.onnx"
    for model, file in zip((normalized, read_onnx(output)), files, strict=True):
        ir.save(ending_at(model, names), file)
    return files


def _why_nothing(plan: Plan) -> str:
    reasons = sorted(set(plan.float_nodes.values()))
    return "Reasons: " + "; ".join(reasons) + "." if reasons else "It has no convolution or linear layer."


class _Counted:
    """Iterator over batches that counts their samples and reports them."""

    def __init__(self, feeds: Iterator[Feed], on_batch: Callable[[int], None] | None) -> None:
        self.feeds, self.on_batch, self.samples = feeds, on_batch, 0

    def __iter__(self) -> Iterator[Feed]:
        for feed in self.feeds:
            size = samples_in(feed)
            self.samples += size
            yield feed
            if self.on_batch is not None:
                self.on_batch(size)


def histograms(
    quantized: Quantized, sketches: Mapping[str, Sketch], bins: int = 64
) -> tuple[dict[str, Any], ...]:
    """Coarse histogram of every quantized tensor beside its range."""
    made = []
    for tensor in quantized.plan.groups:
        values, weights = sketches[tensor].values()
        counts, edges = np.histogram(values, bins=bins, weights=weights)
        kept = quantized.ranges[tensor]
        made.append(
            {
                "tensor": tensor,
                "edges": [float(edge) for edge in edges],
                "counts": [int(count) for count in counts],
                "low": kept.low,
                "high": kept.high,
            }
        )
    return tuple(made)
