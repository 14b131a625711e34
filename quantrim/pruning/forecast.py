"""What pruning can do to a model and what finding out will take, told before the work starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantrim.errors import ModelError
from quantrim.pruning.cost.latency import Engine, LatencyModel, latency_model
from quantrim.pruning.cost.solver import Limits, least_units
from quantrim.pruning.pruning import Survey, survey, unreachable
from quantrim.pruning.sensitivity.criteria import Examples, score
from quantrim.pruning.sensitivity.evaluate import Probe, mean_cross_entropy
from quantrim.pruning.sensitivity.sensitivity import Estimate, Job, estimate_cost


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """What is known before channels go.

    Attributes:
        survey: what is prunable, what is frozen and why.
        latency: predicted milliseconds; None where FLOPs are the objective.
        job: the sensitivity analysis to come; None where there will be none.
        estimate: what that will take.
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
            raise ModelError(unreachable(ratio, self.largest_ratio, self.survey.limits, self.survey.graph))

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
    *,
    probe: Probe | None = None,
    engine: Engine | None = None,
    criterion: str = "l1",
    limits: Limits | None = None,
    protect: Sequence[str] = (),
    seed: int = 0,
    on_layer: Callable[[int, int], None] | None = None,
) -> Forecast:
    """Survey a model, and prepare what measuring it needs.

    Args:
        module: the model; it is left as it was.
        example_inputs: of the shape that costs are counted for.
        probe: labelled samples of a sensitivity analysis; None for none.
        engine: where milliseconds count; its layers are timed, which takes seconds to minutes. None: FLOPs.
        criterion: which units go first; see :func:`quantrim.pruning.sensitivity.criteria.score`.
        limits: allowed widths.
        protect: paths of layers whose own channels shall stay.
        seed: of the criterion "random".
        on_layer: called with the number of layers timed and their total.
    """
    found = survey(module, example_inputs, limits=limits, protect=protect)
    predicted = None
    if engine is not None:
        predicted = latency_model(module, example_inputs, found.graph, engine, on_layer=on_layer)
    if probe is None:
        return Forecast(found, predicted)
    groups = tuple(group for group in found.graph.groups if group.channels > found.limits.min_channels)
    examples = Examples(probe.batches, mean_cross_entropy)
    scores = score(module, groups, criterion, examples=examples, seed=seed)
    job = Job(module, groups, scores, probe, recalibrate=True, threads=max(1, torch.get_num_threads() // 2))
    return Forecast(found, predicted, job, estimate_cost(job))
