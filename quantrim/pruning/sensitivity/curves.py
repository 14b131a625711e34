"""Curves of the loss against the share of a group that goes, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from quantrim.errors import CheckpointError, DataError
from quantrim.files import read_json, validated

_FORMAT = 1
#: Shares removed at which predictions are kept.
GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
#: The nine ratios that PaddleSlim measures.
USUAL_RATIOS = tuple(round(0.1 * step, 1) for step in range(1, 10))
#: A prediction that rises by less than this share of itself between two points tells nothing about them.
_FLAT = 1e-3


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement.

    Attributes:
        ratio: share of the group's units masked.
        loss: mean rise of the loss.
        error: standard error of that mean, over paired samples.
    """

    ratio: float
    loss: float
    error: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Loss of one group against the share removed.

    Attributes:
        points: measurements, rising in ratio.
        predicted: the criterion's prediction at each of GRID, in units of its own; empty when every ratio of
            interest was measured.
    """

    points: tuple[Point, ...]
    predicted: tuple[float, ...] = ()

    def __call__(self, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rise of the loss at shares removed, never falling, 0 at 0.

        Between two measurements it rises as the prediction does there, straight where that says nothing; beyond
        the last one it goes on as steeply as between the last two.
        """
        ratios = np.asarray(ratios, dtype=np.float64)
        at = np.array([0.0, *(point.ratio for point in self.points)])
        losses = np.maximum.accumulate([0.0, *(point.loss for point in self.points)])
        if len(at) == 1:
            return np.zeros_like(ratios)
        inside = np.clip(ratios, 0.0, at[-1])
        piece = np.clip(np.searchsorted(at, inside, side="left"), 1, max(1, len(at) - 1)) - 1
        start, end = at[piece], at[piece + 1]
        share = (inside - start) / (end - start)
        if self.predicted:
            grid, shape = np.array([0.0, *GRID]), np.maximum.accumulate([0.0, *self.predicted])
            low, here, high = (np.interp(one, grid, shape) for one in (start, inside, end))
            tells = high - low > _FLAT * max(float(shape[-1]), 1e-12)
            share = np.where(tells, (here - low) / np.where(tells, high - low, 1.0), share)
        values = losses[piece] + share * (losses[piece + 1] - losses[piece])
        steepness = (losses[-1] - losses[-2]) / (at[-1] - at[-2])
        return np.asarray(values + np.maximum(ratios - at[-1], 0.0) * steepness)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        points = [{"ratio": p.ratio, "loss": p.loss, "error": p.error} for p in self.points]
        return {"points": points, "predicted": list(self.predicted)}


_Number = Annotated[float, Field(allow_inf_nan=False)]


class _StoredPoint(BaseModel):
    ratio: Annotated[float, Field(gt=0, le=1)]
    loss: _Number
    error: _Number


class _StoredCurve(BaseModel):
    points: list[_StoredPoint]
    predicted: list[_Number]

    @model_validator(mode="after")
    def _rising(self) -> _StoredCurve:
        ratios = [point.ratio for point in self.points]
        if ratios != sorted(set(ratios)) or len(self.predicted) not in (0, len(GRID)):
            raise ValueError(f"ratios must rise, and predictions be none or {len(GRID)}")
        return self

    def curve(self) -> Curve:
        """The curve."""
        return Curve(tuple(Point(p.ratio, p.loss, p.error) for p in self.points), tuple(self.predicted))


class _Stored(BaseModel):
    """sensitivity.json."""

    groups: dict[str, _StoredCurve]
    baseline: _Number
    evaluations: Annotated[int, Field(ge=0)]
    seconds: _Number
    key: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Curves of all groups.

    Attributes:
        groups: curve of each group.
        baseline: mean loss of the unpruned model.
        evaluations: passes over the set.
        seconds: time they took.
        key: hashes of what was measured.
    """

    groups: Mapping[str, Curve]
    baseline: float
    evaluations: int
    seconds: float
    key: Mapping[str, str] = field(default_factory=dict)

    def loss(self, group: str, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rise of the loss when shares of a group's units are removed."""
        return self.groups[group](ratios)

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Shares removed and losses, as the threshold method wants them.

        As measured where PaddleSlim's nine ratios or more were, else read off the curves.
        """
        found = {}
        for name, curve in self.groups.items():
            if len(curve.points) >= len(USUAL_RATIOS):
                found[name] = [p.ratio for p in curve.points], [p.loss for p in curve.points]
            else:
                found[name] = list(GRID), curve(np.array(GRID)).tolist()
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "format": _FORMAT,
            "key": dict(self.key),
            "baseline": self.baseline,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "groups": {name: curve.to_json() for name, curve in self.groups.items()},
        }


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Read a file that :func:`measure` wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        value = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a sensitivity file of format {_FORMAT}. Measure it again.")
    stored = validated(_Stored, value, path, "Measure it again.")
    groups = {name: curve.curve() for name, curve in stored.groups.items()}
    return Sensitivity(groups, stored.baseline, stored.evaluations, stored.seconds, stored.key)
