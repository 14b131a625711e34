"""One pruning run: trained weights and a configuration in, smaller model out, retrained and verified.

The folder that it writes is the input of what follows: ``model.pth`` and ``plan.json`` make the model again,
``model.onnx`` is what an engine runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantrim.distillation import distillation_loss
from quantrim.engines.machine import describe_machine
from quantrim.errors import CheckpointError, ConfigError, did_you_mean
from quantrim.files import require_writable, write_json
from quantrim.journal import journal_beside
from quantrim.pruning.choose import Known
from quantrim.pruning.config import PruneConfig
from quantrim.pruning.cost.latency import Engine, measured_side_by_side
from quantrim.pruning.for_latency import prune_for_latency
from quantrim.pruning.forecast import Forecast, forecast
from quantrim.pruning.groups.groups import Frozen
from quantrim.pruning.plan import (
    PLAN_FILE,
    PruningPlan,
    empty_plan,
    load_pruned,
    plan_beside,
    read_plan,
    save_pruned,
)
from quantrim.pruning.pruning import GroupReport, PruningResult, prune_as
from quantrim.pruning.sensitivity.criteria import Examples
from quantrim.pruning.sensitivity.curves import Sensitivity
from quantrim.pruning.sensitivity.probe import Probe
from quantrim.pruning.sensitivity.sensitivity import Progress, measure, require_workers
from quantrim.pruning.sensitivity.statistics import recalibrate_batch_norm
from quantrim.pruning.together import statistics_hold
from quantrim.recipes.boxes import boxes_distance
from quantrim.recipes.loading import Loaded, load, load_float
from quantrim.recipes.probes import LEGAL_METRICS, examples_of, probe_of
from quantrim.recipes.runs import example_input, export, validation
from quantrim.recipes.sensitivity_plot import plot_sensitivity
from quantrim.scratch import claiming
from quantrim.vision.config import (
    Config,
    build_data,
    build_distillation,
    build_loss,
    build_optimizer,
)
from quantrim.vision.train import TrainResult, TrainSettings, train

#: Fields of a request that pruning for latency takes as they are.
_OPTIONS = ("criterion", "method", "limits", "protect", "seed")


@dataclass(frozen=True, slots=True)
class PruneRecipe:
    """What to remove and how.

    Attributes:
        config: the request: ratio, criterion, method, limits, protected layers, seed.
        objective: "flops" or "latency".
        measure_sensitivity: measure what each group's channels are worth; else the criterion predicts it.
        ratios: shares of a group to measure; None for as many as it takes.
        metric: what is measured: "loss" (cross entropy; of a detector its own), "error" (share of wrong
            classes), "iou", or of a detector "ap" (average precision image by image).
        samples: training images that losses and statistics are measured on; None for 32 large to 1024 small
            ones.
        workers: processes, or "ray".
        steps: rounds of pruning and retraining.
        distill: learn from the unpruned model while retraining.
        learning_rate: of retraining; the configuration's when None.
        engine: where latency is measured.
        shape: input shape of costs and file; the first validation image's when None.

    Raises:
        ConfigError: a field holds what is not allowed; ``field`` names it.
    """

    config: PruneConfig = field(default_factory=PruneConfig)
    objective: Literal["flops", "latency"] = "flops"
    measure_sensitivity: bool = True
    ratios: tuple[float, ...] | None = None
    metric: str = "loss"
    samples: int | None = None
    workers: int | str = 1
    steps: int = 1
    distill: bool = True
    learning_rate: float | None = None
    engine: Engine = field(default_factory=Engine)
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_workers(self.workers)
        for name in ("samples", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, it is {value}.", field=name)
        for name, legal in (("objective", ("flops", "latency")), ("metric", LEGAL_METRICS)):
            word = getattr(self, name)
            if word not in legal:
                raise ConfigError(f"unknown {name} {word!r}{did_you_mean(word, legal)}", field=name)
        if self.ratios is not None and not (self.ratios and all(0 < ratio < 1 for ratio in self.ratios)):
            raise ConfigError(f"ratios must be shares in (0, 1), they are {self.ratios}.", field="ratios")

    @property
    def measures(self) -> bool:
        """Whether the sensitivity of groups decides how much each loses."""
        return self.measure_sensitivity and not self.config.of_channels

    @property
    def for_latency(self) -> bool:
        """Whether milliseconds are the objective."""
        return self.objective == "latency" and not self.config.of_channels


@dataclass(frozen=True, slots=True)
class PruneRun:
    """What came of a run.

    Attributes:
        output: folder with ``model.pth``, ``plan.json``, ``model.onnx``.
        result: what was removed, over all rounds.
        latency_ms: {"before", "after"} on the engine.
        metric: {"before", "pruned", "retrained"} of the deciding metric.
        chosen: "pruned" or "retrained": the state that was kept.
        parity: largest difference between torch and the exported file.
        evaluations: passes of the sensitivity analysis over its samples.
        seconds: of sensitivity analysis and retraining.
    """

    output: str
    result: PruningResult
    latency_ms: Mapping[str, float]
    metric: Mapping[str, float]
    chosen: str
    parity: float
    evaluations: int
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values by the keys of the documented JSON schema."""
        return {
            "command": "prune",
            "output": self.output,
            **self.result.to_json(),
            "latency_ms": dict(self.latency_ms),
            "metric": dict(self.metric),
            "chosen": self.chosen,
            "parity": self.parity,
            "evaluations": self.evaluations,
            "seconds": dict(self.seconds),
            "machine": describe_machine().to_json(),
        }


@dataclass(frozen=True, slots=True)
class Listener:
    """What a run tells while it works.

    Attributes:
        timed: while layers are timed on the engine: how many are done, how many there are.
        forecast: before each round: what can be pruned, and what measuring it will take.
        measured: during the sensitivity analysis.
    """

    timed: Callable[[int, int], None] = lambda done, total: None
    forecast: Callable[[Forecast], None] = lambda found: None
    measured: Callable[[Progress], None] = lambda progress: None


def forecast_config(
    config: Config,
    weights: str | Path | None,
    recipe: PruneRecipe,
    *,
    listener: Listener | None = None,
) -> Forecast:
    """What :func:`prune_config` would start from, without pruning anything.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError: one line each that says what is wrong.
    """
    loaded = load_float(config, weights)
    probe = probe_of(config, recipe.samples, recipe.metric, loaded.model) if recipe.measures else None
    examples = None if probe is None else examples_of(config, probe, loaded.model)
    example = example_input(loaded, recipe.shape)
    return _forecast(loaded.model, example, recipe, probe, examples, listener or Listener())


def _forecast(
    model: nn.Module,
    example: Tensor,
    recipe: PruneRecipe,
    probe: Probe | None,
    examples: Examples | None,
    listener: Listener,
) -> Forecast:
    return forecast(
        model,
        example,
        recipe.config,
        probe=probe if recipe.measures else None,
        examples=examples,
        ratios=recipe.ratios,
        engine=recipe.engine if recipe.for_latency else None,
        on_layer=listener.timed,
    )


@claiming
def prune_config(
    config: Config,
    weights: str | Path | None,
    settings: TrainSettings,
    save_dir: str | Path,
    recipe: PruneRecipe,
    *,
    listener: Listener | None = None,
    resume: bool = False,
    progress: bool = True,
) -> PruneRun:
    """Survey, measure, prune, retrain, choose, export.

    Args:
        config: model, data, loss, optimizer and schedule.
        weights: of the unpruned model; None for the configuration's own, or fresh ones.
        settings: of retraining; ``iterations`` may be 0.
        save_dir: gets the pruned model, ``sensitivity.json`` and ``.svg``, checkpoints, ``prune.json``.
        recipe: what to remove and how.
        listener: is told what is prunable, and how far measuring is.
        resume: go on with the retraining of an interrupted one-round run in ``save_dir``.
        progress: show a progress bar while training.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError: one line each that says what is wrong.
    """
    return _Run(config, weights, settings, Path(save_dir), recipe, listener or Listener(), progress).run(resume)


class _Run:
    """State of one run."""

    def __init__(
        self,
        config: Config,
        weights: str | Path | None,
        settings: TrainSettings,
        save_dir: Path,
        recipe: PruneRecipe,
        listener: Listener,
        progress: bool,
    ) -> None:
        self.ratio = recipe.config.share
        self.config, self.settings, self.save_dir, self.recipe = config, settings, save_dir, recipe
        self.listener, self.progress = listener, progress
        torch.manual_seed(settings.seed)
        self.loaded = load_float(config, weights)
        self.teacher = copy.deepcopy(self.loaded.model)
        self.judge = partial(_value, validation(config), settings.best_key)
        self.example = example_input(self.loaded, recipe.shape)
        self.probe = probe_of(config, recipe.samples, recipe.metric, self.loaded.model)
        self.examples = examples_of(config, self.probe, self.loaded.model)
        self.plan = (plan_beside(weights) if weights else None) or empty_plan(self.loaded.model)
        self.evaluations = 0
        self.seconds = {"sensitivity": 0.0, "retraining": 0.0}

    def run(self, resume: bool) -> PruneRun:
        """All of it."""
        require_writable(self.save_dir)
        metric = {"before": self.judge(self.loaded.model)}
        model = self._interrupted() if resume else self.loaded.model
        results: list[PruningResult] = []
        shares = _shares(self.ratio, self.recipe.steps)
        iterations = self.settings.iterations // self.recipe.steps
        trained: TrainResult | None = None
        for step, share in enumerate(shares):
            results.append(_from_facts(self.plan, self.ratio) if resume else self._prune(model, share, step))
            metric["pruned"] = self.judge(model)
            if not resume:
                save_pruned(model, self._stored_plan(results), self.save_dir)
            if iterations:
                before = copy.deepcopy(model.state_dict())
                trained = self._retrain(model, iterations, step, resume)
                metric["retrained"] = self._keep_best(model, trained, before, metric["pruned"])
        chosen = "retrained" if metric.get("retrained", float("-inf")) >= metric["pruned"] else "pruned"
        metric.setdefault("retrained", metric["pruned"])
        return self._finish(model, _over_all(results), metric, chosen)

    def _prune(self, model: nn.Module, share: float, step: int) -> PruningResult:
        recipe, request = self.recipe, self.recipe.config
        found = _forecast(model, self.example, recipe, self.probe, self.examples, self.listener)
        self.listener.forecast(found)
        if not request.of_channels:
            found.require(share)
        known = Known(
            examples=self.examples,
            sensitivity=self._sensitivity(found, step),
            probe=self.probe if recipe.measures else None,
            surveyed=found.survey,
        )
        with journal_beside(self.save_dir / f"widths_{step + 1}") as journal:
            result = self._prune_as(model, share, found, replace(known, journal=journal))
        if statistics_hold(self.teacher, self.probe):
            recalibrate_batch_norm(model, (inputs for inputs, _ in self.probe.batches))
        self.plan = self.plan.then(result.plan)
        return result

    def _prune_as(self, model: nn.Module, share: float, found: Forecast, known: Known) -> PruningResult:
        recipe, request = self.recipe, self.recipe.config
        if request.of_channels:
            return prune_as(model, self.example, replace(request, channel_ratio=share), known)
        if recipe.for_latency:
            options: dict[str, Any] = {name: getattr(request, name) for name in _OPTIONS} | {
                name: getattr(known, name) for name in ("examples", "sensitivity", "probe", "journal")
            }
            result, _, _ = prune_for_latency(
                model,
                self.example,
                share,
                recipe.engine,
                surveyed=found.survey,
                predicted=found.latency,
                **options,
            )
            return result
        return prune_as(model, self.example, replace(request, ratio=share), known)

    def _sensitivity(self, found: Forecast, step: int) -> Sensitivity | None:
        if found.job is None:
            return None
        name = "sensitivity" if step == 0 else f"sensitivity_{step + 1}"
        path, workers = self.save_dir / f"{name}.json", self.recipe.workers
        measured = measure(found.job, path=path, workers=workers, on_progress=self.listener.measured)
        plot_sensitivity(measured, self.save_dir / f"{name}.svg")
        self.evaluations += measured.evaluations
        self.seconds["sensitivity"] += measured.seconds
        return measured

    def _stored_plan(self, results: list[PruningResult]) -> PruningPlan:
        whole = _over_all(results)
        facts = {
            "requested_ratio": self.ratio,
            "achieved_ratio": whole.achieved,
            "expected_loss": whole.expected_loss,
            "flops": whole.flops,
            "params": whole.params,
            "groups": [asdict(group) for group in whole.groups],
            "blocks": list(whole.blocks),
            "frozen": [asdict(frozen) for frozen in whole.frozen],
        }
        return replace(self.plan, facts=facts)

    def _interrupted(self) -> nn.Module:
        """The pruned model that an interrupted run had saved before it retrained."""
        if self.recipe.steps > 1:
            raise ConfigError("a run of several rounds can't be resumed; start it anew, or use one round.")
        if not (self.save_dir / PLAN_FILE).is_file():
            raise CheckpointError(
                f"{self.save_dir}: no {PLAN_FILE} to resume from. Start without resume.", field="resume"
            )
        self.plan = read_plan(self.save_dir)
        return load_pruned(load(self.config, None).model, self.save_dir)

    def _retrain(self, model: nn.Module, iterations: int, step: int, resume: bool) -> TrainResult:
        settings = replace(self.settings, iterations=iterations)
        data = build_data(self.config, "train_dataset", seed=settings.seed + step)
        optimizer, scheduler = build_optimizer(
            self.config, model, iterations=iterations, learning_rate=self.recipe.learning_rate
        )
        folder = self.save_dir / "retraining" / f"round_{step + 1}"
        begun = resume and any(folder.glob("iter_*/state.pth"))
        result = train(
            model,
            settings,
            data,
            folder,
            loss_fn=build_loss(self.config, data.ignore_index, self.loaded.model),
            optimizer=optimizer,
            scheduler=scheduler,
            validate=lambda module: {settings.best_key: self.judge(module)},
            teacher=self.teacher if self.recipe.distill else None,
            distill=self._taught if self.recipe.distill else None,
            resume=folder if begun else None,
            progress=self.progress,
        )
        self.seconds["retraining"] += result.seconds
        return result

    def _taught(self, outputs: Any, expected: Any) -> Tensor:
        settings = build_distillation(self.config)
        compare = boxes_distance(self.teacher) or partial(distillation_loss, temperature=settings.temperature)
        return settings.weight * compare(outputs, expected)

    def _keep_best(
        self, model: nn.Module, trained: TrainResult, before: Mapping[str, Tensor], pruned: float
    ) -> float:
        """Load the best state, the one before retraining included; returns the best one retrained."""
        model.cpu()
        best = trained.best_metric if trained.best_metric is not None else float("-inf")
        if best >= pruned:
            before = torch.load(trained.best_weights, map_location="cpu", weights_only=True)
        model.load_state_dict(before)
        model.eval()
        return best

    def _finish(
        self, model: nn.Module, result: PruningResult, metric: Mapping[str, float], chosen: str
    ) -> PruneRun:
        model.eval()
        plan = self._stored_plan([result])
        save_pruned(model, plan, self.save_dir)
        deployed = Loaded(self.config, model, self.loaded.data)
        parity = export(deployed, self.save_dir / "model.onnx", shape=self.recipe.shape)
        before, after = measured_side_by_side([self.teacher.cpu(), model], self.example, self.recipe.engine)
        run = PruneRun(
            output=str(self.save_dir),
            result=replace(result, plan=plan, requested=self.ratio),
            latency_ms={"before": before, "after": after},
            metric=metric,
            chosen=chosen,
            parity=parity,
            evaluations=self.evaluations,
            seconds=self.seconds,
        )
        write_json(self.save_dir / "prune.json", run.to_json())
        return run


def _value(judge: Callable[[nn.Module], Mapping[str, Any]], key: str, module: nn.Module) -> float:
    return float(judge(module)[key])


def _shares(ratio: float, steps: int) -> list[float]:
    """Share to remove of what is left, in rounds that come to ``ratio`` together."""
    return [ratio] if steps == 1 else [1 - (1 - ratio) ** (1 / steps)] * steps


def _over_all(results: list[PruningResult]) -> PruningResult:
    """Several rounds as one."""
    first, last = results[0], results[-1]
    if len(results) == 1:
        return first
    achieved = 1.0
    for result in results:
        achieved *= 1 - result.achieved
    widths = {group.name: group.before for group in first.groups}
    return replace(
        last,
        flops={"before": first.flops["before"], "after": last.flops["after"]},
        params={"before": first.params["before"], "after": last.params["after"]},
        achieved=1 - achieved,
        groups=tuple(replace(group, before=widths.get(group.name, group.before)) for group in last.groups),
        expected_loss=sum(result.expected_loss for result in results),
        blocks=tuple(path for result in results for path in result.blocks),
    )


def _from_facts(plan: PruningPlan, ratio: float) -> PruningResult:
    facts = plan.facts
    try:
        return PruningResult(
            plan=plan,
            flops={key: float(value) for key, value in facts["flops"].items()},
            params={key: int(value) for key, value in facts["params"].items()},
            requested=ratio,
            achieved=float(facts["achieved_ratio"]),
            groups=tuple(GroupReport(**group) for group in facts["groups"]),
            frozen=tuple(Frozen(**frozen) for frozen in facts["frozen"]),
            expected_loss=float(facts["expected_loss"]),
            blocks=tuple(facts.get("blocks", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{PLAN_FILE}: not of a run that can be resumed ({error}).") from error
