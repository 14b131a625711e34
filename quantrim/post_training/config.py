"""Checks of post-training quantization's options, made before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import get_args

from quantrim.engines import EngineName, installed_engines, require_engine
from quantrim.errors import ConfigError, did_you_mean
from quantrim.placement import Plan
from quantrim.post_training.refine import REFINEMENTS
from quantrim.ranges import WeightAlgo
from quantrim.ranges.estimators import ESTIMATORS
from quantrim.targets import Target


def check_refinements(refinements: Sequence[str]) -> None:
    """Raise ConfigError for a refinement that doesn't exist."""
    for name in refinements:
        if name not in REFINEMENTS:
            raise ConfigError(f"unknown refinement {name!r}{did_you_mean(name, REFINEMENTS)}")


def check_choices(weight_algo: str, hist_percent: float, overrides: Sequence[tuple[str, str]]) -> None:
    """Raise ConfigError for what would go unnoticed, or be noticed after calibration."""
    if weight_algo not in get_args(WeightAlgo):
        raise ConfigError(
            f"weight_algo {weight_algo!r}{did_you_mean(weight_algo, get_args(WeightAlgo))}", field="weight_algo"
        )
    if not 0 < hist_percent <= 1:
        raise ConfigError(
            f"hist_percent {hist_percent}: a share of the values, above 0 and up to 1.", field="hist_percent"
        )
    for glob, algo in overrides:
        if algo not in ESTIMATORS:
            raise ConfigError(
                f"overrides {glob}={algo}: unknown algorithm{did_you_mean(algo, ESTIMATORS)}", field="overrides"
            )


def check_overrides(plan: Plan, overrides: Sequence[tuple[str, str]]) -> None:
    """Raise ConfigError for a glob that no quantized tensor matches."""
    for glob, algo in overrides:
        if not any(fnmatchcase(tensor, glob) for tensor in plan.groups):
            raise ConfigError(
                f"overrides {glob}={algo}: no quantized tensor is named so{did_you_mean(glob, plan.groups)}",
                field="overrides",
            )


def engines_of(target: Target, engines: Sequence[EngineName] | None) -> tuple[EngineName, ...]:
    """Engines to ask: those that were named, else those of the target that are installed.

    Raises:
        EngineError: a named engine is unknown or not installed.
    """
    if engines is None:
        present = installed_engines()
        return tuple(engine for engine in present if engine in target.engines)
    for engine in engines:
        require_engine(engine)
    return tuple(engines)
