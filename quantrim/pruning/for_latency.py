"""Pruning towards milliseconds, measured on the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from quantrim.pruning.cost.latency import Engine, LatencyModel, latency_model, measured_side_by_side
from quantrim.pruning.cost.solver import least_units
from quantrim.pruning.pruning import PruningResult, Survey, prune, survey


def prune_for_latency(
    module: nn.Module,
    example_inputs: Tensor,
    ratio: float,
    engine: Engine | None = None,
    *,
    surveyed: Survey | None = None,
    predicted: LatencyModel | None = None,
    attempts: int = 3,
    tolerance: float = 0.02,
    on_layer: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[PruningResult, float, float]:
    """Prune until a share of the measured milliseconds is gone.

    The table only predicts. Each attempt prunes a copy, measures it beside the original, and asks for as much
    more as was missing.

    Args:
        module: the model; pruned in place.
        example_inputs: of the shape that is deployed.
        ratio: share of the milliseconds to remove.
        engine: where they count.
        surveyed: result of :func:`quantrim.pruning.survey` of this module.
        predicted: result of :func:`latency_model` of this module and survey.
        attempts: most copies that are pruned and measured.
        tolerance: a miss of this much is good enough.
        on_layer: see :func:`latency_model`.
        **options: of :func:`quantrim.pruning.prune`.

    Returns:
        What was done (``achieved`` is the measured share), milliseconds before and after.

    Raises:
        ModelError: the ratio can't be reached.
    """
    engine = engine or Engine()
    limits, protect = options.pop("limits", None), options.pop("protect", ())
    looked = surveyed or survey(module, example_inputs, limits=limits, protect=protect)
    model = predicted or latency_model(module, example_inputs, looked.graph, engine, on_layer=on_layer)
    most = 1 - float(model(least_units(looked.graph.groups, looked.limits))) / model.full_ms
    keep = {key: options.pop(key) for key in ("optimizer", "followers") if key in options}
    asked, before, after = ratio, 0.0, 0.0
    for attempt in range(attempts):
        trial = copy.deepcopy(module)
        prune(trial, example_inputs, ratio=asked, objective=model, surveyed=looked, **options)
        before, after = measured_side_by_side([module, trial], example_inputs, engine)
        missing = ratio - (1 - after / before)
        if missing <= tolerance or attempt == attempts - 1:
            break
        asked = max(asked, min(0.99 * most, asked + missing))
    result = prune(module, example_inputs, ratio=asked, objective=model, surveyed=looked, **options, **keep)
    return replace(result, requested=ratio, achieved=1 - after / before), before, after
