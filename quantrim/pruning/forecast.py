"""What pruning can do to a model and what finding out will take, told before the work starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantrim.errors import ModelError
from quantrim.pruning.choose import Known, measured_groups, unreachable
from quantrim.pruning.config import PruneConfig
from quantrim.pruning.cost.latency import Engine, LatencyModel, latency_model
from quantrim.pruning.cost.solver import least_units
from quantrim.pruning.sensitivity.criteria import Examples, score
from quantrim.pruning.sensitivity.curves import USUAL_RATIOS
from quantrim.pruning.sensitivity.probe import Probe, mean_cross_entropy
from quantrim.pruning.sensitivity.sensitivity import Estimate, Job, estimate_cost
from quantrim.pruning.survey import Survey, survey
from quantrim.pruning.together import most_evaluations, statistics_hold


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """What is known before channels go.

    Attributes:
        survey: what is prunable, what is frozen and why.
        latency: predicted milliseconds; None where FLOPs are the objective.
        job: the sensitivity analysis to come; None where there will be none.
        estimate: what that and choosing widths together will take.
    """

    survey: Survey
    latency: LatencyModel | None = None
    job: Job | None = None
    estimate: Estimate | None = None

    @property
    def least_ms(self) -> float | None:
        """Predicted milliseconds with every group at its least allowed width."""
        if self.latency is None:
            return None
        return float(self.latency(least_units(self.survey.graph.groups, self.survey.limits)))

    @property
    def largest_ratio(self) -> float:
        """Largest share of the objective that can go: of FLOPs, or of predicted milliseconds."""
        if self.latency is None or self.least_ms is None:
            return self.survey.largest_ratio
        return max(0.0, 1 - self.least_ms / self.latency.full_ms)

    def require(self, ratio: float) -> None:
        """Refuse a ratio that is out of reach, before time is spent on it.

        Raises:
            ModelError: it is.
        """
        if ratio > self.largest_ratio:
            message = unreachable(ratio, self.largest_ratio, self.survey.limits, self.survey.graph)
            raise ModelError(message, field="ratio")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        found, cost = self.latency, self.estimate
        return {
            "survey": self.survey.to_json(),
            "largest_ratio": self.largest_ratio,
            "latency_ms": None if found is None else {"now": found.full_ms, "least": self.least_ms},
            "sensitivity": None if cost is None else {"evaluations": cost.evaluations, "seconds": cost.seconds},
        }


def forecast(
    module: nn.Module,
    example_inputs: Tensor,
    config: PruneConfig | None = None,
    *,
    probe: Probe | None = None,
    examples: Examples | None = None,
    ratios: Sequence[float] | None = None,
    engine: Engine | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> Forecast:
    """Survey a model, and prepare what measuring it needs.

    Args:
        module: the model; it is left as it was.
        example_inputs: of the shape that costs are counted for.
        config: criterion, method, limits, protected layers and seed count here.
        probe: labelled samples of a sensitivity analysis; None for none.
        examples: for criteria that need gradients; the probe's batches and cross entropy by default.
        ratios: shares to measure at each group; None for as many as it takes, PaddleSlim's nine for its method.
        engine: where milliseconds count; its layers are timed, which takes seconds to minutes. None: FLOPs.
        on_layer: called with the number of layers timed and their total.
    """
    config = config or PruneConfig()
    found = survey(module, example_inputs, limits=config.limits, protect=config.protect)
    predicted = None
    if engine is not None:
        predicted = latency_model(module, example_inputs, found.graph, engine, on_layer=on_layer)
    if probe is None:
        return Forecast(found, predicted)
    groups = measured_groups(found)
    examples = examples or Examples(probe.batches, mean_cross_entropy)
    scores = score(module, groups, config.criterion, examples=examples, seed=config.seed)
    usual = USUAL_RATIOS if config.method == "threshold" else None
    job = Job(
        module,
        groups,
        scores,
        probe,
        ratios=usual if ratios is None else tuple(ratios),
        recalibrate=statistics_hold(module, probe),
        threads=max(1, torch.get_num_threads() // 2),
    )
    alone = estimate_cost(job)
    if config.method == "threshold":
        return Forecast(found, predicted, job, alone)
    count = most_evaluations(len(groups), Known().rounds)
    each = 2 * alone.seconds / max(1, alone.evaluations)  # whole passes, without what lies before a group
    whole = Estimate(alone.evaluations + count, alone.seconds + count * each * (2 if job.recalibrate else 1))
    return Forecast(found, predicted, job, whole)
