"""Options of post-training quantization: data, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, get_args

from quantrim.engines import EngineName, installed_engines, require_engine
from quantrim.errors import ConfigError, did_you_mean
from quantrim.judges import Judging
from quantrim.placement import Plan, Selection
from quantrim.post_training.refine import REFINEMENTS, Refinement
from quantrim.ranges import Algo, WeightAlgo
from quantrim.ranges.estimators import ESTIMATORS, HIST_PERCENT
from quantrim.targets import Target, target_named


@dataclass(frozen=True, slots=True)
class PtqConfig:
    """Settings of post-training quantization.

    Attributes:
        target: rules of the engine: "portable", "openvino", "onnxruntime" or "tensorrt".
        algo: range estimator of activations.
        samples: calibration samples; None for all there are.
        seed: draws the samples of a folder or a list at random; None spreads them evenly over a folder.
        batch_size: samples a forward pass, where the model's batch axis is open; results don't depend on it.
            More than two gain no speed on a CPU, and the first touch of fresh memory costs more than the
            arithmetic.
        weight_algo: scales of weights: "abs_max" or "mse".
        per_channel: one weight scale an output channel, else one a tensor.
        hist_percent: share of values kept by "hist", in (0, 1].
        op_types: canonical ops to quantize; None for all that the target runs.
        skip: globs on names of nodes that stay float.
        skip_tensors: names of tensors whose readers stay float.
        same_scale: sets of names of tensors that share scale and zero point.
        float_heads: keep the layers that make the outputs float, as detectors want it.
        overrides: (glob on tensor names, estimator) pairs; the first that matches wins.
        refinements: any of "equalize", "adaround", "bias", run in this order; each is kept only where it
            lowers the error at the outputs. Bias correction is the default: of all options it brings most
            for its time (benchmarks/ptq_accuracy.py).
        reduce_range: 7-bit weights (-63..63), exact on CPUs without VNNI.
        input_shape: shape of the first input where axes other than the batch are dynamic.
        engines: engines to ask; None for those of the target that are installed, () for none.
        threads: CPU threads of the latency measurement.
        tune_seconds: time for finding the rewrites that are faster on the engines; 0 rewrites nothing. The
            precision of the layers is then chosen by the clock, too.
        judging: how the file is judged, and the level that it must reach.
        judged: samples to judge on, at most: those of the data that did not calibrate, where there are some.
        mend: where the file is not faithful, and equalisation or a few layers in float make it so, do that.
        keep_outliers: calibrate on samples whose values lie far outside the others', too.

    Raises:
        ConfigError: an illegal value; ``error.field`` names it.
        EngineError: a named engine is unknown or not installed.
    """

    target: str = "portable"
    algo: Algo = "mse"
    samples: int | None = 100
    seed: int | None = None
    batch_size: int = 2
    weight_algo: WeightAlgo = "abs_max"
    per_channel: bool = True
    hist_percent: float = HIST_PERCENT
    op_types: frozenset[str] | None = None
    skip: tuple[str, ...] = ()
    skip_tensors: tuple[str, ...] = ()
    same_scale: tuple[tuple[str, ...], ...] = ()
    float_heads: bool = False
    overrides: tuple[tuple[str, Algo], ...] = ()
    refinements: tuple[Refinement, ...] = ("bias",)
    reduce_range: bool = False
    input_shape: tuple[int, ...] | None = None
    engines: tuple[EngineName, ...] | None = None
    threads: int = 1
    tune_seconds: float = 0.0
    judging: Judging = field(default_factory=Judging)
    judged: int = 32
    mend: bool = True
    keep_outliers: bool = False

    def __post_init__(self) -> None:
        for name in ("skip", "skip_tensors", "overrides", "refinements"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "same_scale", tuple(tuple(names) for names in self.same_scale))
        for name, kind in (("op_types", frozenset), ("input_shape", tuple), ("engines", tuple)):
            value: Iterable[Any] | None = getattr(self, name)
            object.__setattr__(self, name, None if value is None else kind(value))
        self._check_words()
        self._check_numbers()
        for engine in self.engines or ():
            require_engine(engine)

    def _check_words(self) -> None:
        target_named(self.target)
        _require_known("algo", (self.algo,), ESTIMATORS)
        _require_known("weight_algo", (self.weight_algo,), get_args(WeightAlgo))
        _require_known("refinements", self.refinements, REFINEMENTS)
        for glob, algo in self.overrides:
            if algo not in ESTIMATORS:
                raise ConfigError(
                    f"overrides {glob}={algo}: unknown algorithm{did_you_mean(algo, ESTIMATORS)}",
                    field="overrides",
                )
        if self.op_types is not None:
            self.rules.require_ops(self.op_types)

    def _check_numbers(self) -> None:
        if not 0 < self.hist_percent <= 1:
            raise ConfigError(
                f"hist_percent {self.hist_percent}: a share of the values, above 0 and up to 1.",
                field="hist_percent",
            )
        if not 0 <= self.tune_seconds < float("inf"):
            raise ConfigError(f"tune_seconds is {self.tune_seconds!r}; seconds, from 0.", field="tune_seconds")
        for name in ("samples", "batch_size", "threads", "judged"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be at least 1.", field=name)

    @property
    def rules(self) -> Target:
        """Rules of the engine."""
        return target_named(self.target)

    @property
    def selection(self) -> Selection:
        """What the user keeps float."""
        return Selection(
            self.skip,
            self.op_types,
            skip_tensors=self.skip_tensors,
            same_scale=self.same_scale,
            float_heads=self.float_heads,
            find_heads=True,
        )

    @property
    def levels(self) -> int:
        """Largest weight code."""
        return 63 if self.reduce_range else 127

    def asked_engines(self) -> tuple[EngineName, ...]:
        """Engines to ask: those that were named, else those of the target that are installed."""
        if self.engines is not None:
            return self.engines
        return tuple(engine for engine in installed_engines() if engine in self.rules.engines)


def ptq_config(config: PtqConfig | None = None, **options: Any) -> PtqConfig:
    """Settings with some fields changed; those of :class:`~quantrim.judges.Judging` may be given likewise.

    Raises:
        ConfigError: an unknown keyword, or an illegal value.
    """
    of_judging = [entry.name for entry in fields(Judging)]
    legal = [*(entry.name for entry in fields(PtqConfig)), *of_judging]
    for name in options:
        if name not in legal:
            raise ConfigError(f"unknown option {name!r} of ptq{did_you_mean(name, legal)}", field=name)
    config = config or PtqConfig()
    told = {name: options.pop(name) for name in of_judging if name in options}
    judging = replace(options.pop("judging", config.judging), **told)
    return replace(config, judging=judging, **options)


def require_overrides_match(plan: Plan, overrides: Sequence[tuple[str, str]]) -> None:
    """Raise ConfigError for a glob that no quantized tensor matches."""
    for glob, algo in overrides:
        if not any(fnmatchcase(tensor, glob) for tensor in plan.groups):
            raise ConfigError(
                f"overrides {glob}={algo}: no quantized tensor is named so{did_you_mean(glob, plan.groups)}",
                field="overrides",
            )


def _require_known(field: str, words: Iterable[str], legal: Iterable[str]) -> None:
    for word in words:
        if word not in legal:
            raise ConfigError(f"{field} {word!r} is unknown{did_you_mean(word, legal)}", field=field)
