"""Pruning towards milliseconds, measured on the engine."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from quantrim.pruning.choose import Known
from quantrim.pruning.config import PruneConfig
from quantrim.pruning.cost.latency import Engine, LatencyModel, latency_model, measured_side_by_side
from quantrim.pruning.cost.solver import Limits, least_units
from quantrim.pruning.pruning import PruningResult, prune_as
from quantrim.pruning.surgery import Optimizers, remove
from quantrim.pruning.survey import Survey, survey

#: Going on must bring this share of the further milliseconds that are asked for.
_WORTH = 1 / 3


@dataclass(frozen=True, slots=True)
class _Trial:
    """A copy that was pruned and measured.

    Attributes:
        asked: share of the predicted milliseconds.
        result: what was removed.
        before: milliseconds of the original beside it.
        after: its milliseconds.
    """

    asked: float
    result: PruningResult
    before: float
    after: float

    @property
    def gained(self) -> float:
        """Share of the measured milliseconds that is gone."""
        return 1 - self.after / self.before


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
    optimizer: Optimizers = None,
    followers: Iterable[nn.Module] = (),
    **options: Any,
) -> tuple[PruningResult, float, float]:
    """Prune until a share of the measured milliseconds is gone, or more pruning would bring next to nothing.

    The table only predicts. Each attempt prunes a copy, measures it beside the original, and asks for as much
    more or less as was missed. Where the rest of the time can't be pruned (resizing, memory), asking for more
    costs channels and wins no time: then the attempt before is kept, with a warning.

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
        optimizer: as for :func:`quantrim.pruning.prune`.
        followers: as for :func:`quantrim.pruning.prune`.
        **options: fields of :class:`PruneConfig` and :class:`quantrim.pruning.choose.Known`.

    Returns:
        What was done (``achieved`` is the measured share), milliseconds before and after.

    Raises:
        ModelError: the ratio can't be reached.
    """
    engine = engine or Engine()
    known = Known(**{name: options.pop(name) for name in Known.__dataclass_fields__ if name in options})
    config = PruneConfig(ratio=ratio, **{"limits": Limits()} | options)
    looked = surveyed or survey(module, example_inputs, limits=config.limits, protect=config.protect)
    model = predicted or latency_model(module, example_inputs, looked.graph, engine, on_layer=on_layer)
    most = 1 - float(model(least_units(looked.graph.groups, looked.limits))) / model.full_ms
    known = replace(known, objective=model, surveyed=looked)

    def tried(asked: float, known: Known) -> _Trial:
        copied = copy.deepcopy(module)
        result = prune_as(copied, example_inputs, replace(config, ratio=asked), known)
        return _Trial(asked, result, *measured_side_by_side([module, copied], example_inputs, engine))

    trials = [tried(ratio, replace(known, probe=None))]
    while len(trials) < attempts and abs(ratio - trials[-1].gained) > tolerance and _worth_going_on(trials):
        asked = min(0.99 * most, max(0.01, trials[-1].asked + ratio - trials[-1].gained))
        if any(abs(asked - trial.asked) < 1e-3 for trial in trials):
            break
        trials.append(tried(asked, replace(known, probe=None)))
    best = _best(trials, ratio, tolerance)
    if known.probe is not None:  # with the share that is known to be right, widths are chosen together
        best = tried(best.asked, known)
    if best.gained < ratio - 2 * tolerance:
        warnings.warn(
            f"{best.gained:.1%} of the milliseconds are gone, {ratio:.1%} were asked for: what is left of the "
            "time may not depend on channels.",
            stacklevel=2,
        )
    remove(module, best.result.plan.removal, optimizer=optimizer, followers=followers)
    return replace(best.result, requested=ratio, achieved=best.gained), best.before, best.after


def _worth_going_on(trials: Sequence[_Trial]) -> bool:
    """Whether the last step brought its share of what it asked for."""
    if len(trials) < 2:
        return True
    before, last = trials[-2:]
    return last.gained - before.gained >= _WORTH * (last.asked - before.asked)


def _best(trials: Sequence[_Trial], ratio: float, tolerance: float) -> _Trial:
    """The trial that removes least among those that reach the ratio, else the last one that was worth it."""
    reaching = [trial for trial in trials if trial.gained >= ratio - tolerance]
    if reaching:
        return min(reaching, key=lambda trial: trial.asked)
    return trials[-1] if _worth_going_on(trials) else trials[-2]
