"""What a user may choose about quantization-aware training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from torch import nn

from quantrim.errors import ConfigError, did_you_mean
from quantrim.ranges import ESTIMATORS, Algo

#: Width of activations that QDQ files hold; narrower ones exist in simulation only.
EXPORTED_BITS = 8

ActivationMethod = Literal["moving_average", "abs_max", "range_abs_max", "lsq", "pact"]
WeightMethod = Literal["abs_max", "moving_average", "range_abs_max", "lsq"]
WeightPreprocess = Literal["pact"]
RankRanges = Literal["first", "max", "mean"]
#: Makes a module, a fresh one for every tensor; of an instance copies are made.
ModuleMaker = Callable[[], nn.Module] | nn.Module


@dataclass(frozen=True, slots=True)
class QATConfig:
    """Settings of quantization-aware training.

    Attributes:
        weight: how the scale of a weight comes about: "abs_max" of the weight at every step,
            "moving_average" or "range_abs_max" (largest of the last ``window_size`` steps) of it, or a
            learned step size, "lsq".
        activation: the same for activations, or a learned clip, "pact". "abs_max" takes each batch's own
            range while training and the average range afterwards.
        weight_per_channel: one scale for each output channel, else one for the tensor.
        weight_bits: 1 to 16; what is above 8 can be trained but not exported. Weights of one bit are their
            signs times the mean magnitude, with the method "abs_max" only.
        activation_bits: 1 to 16; what is not 8 can be trained but not exported.
        initial_range: how calibration chooses the range that training starts from.
        moving_rate: decay of the moving average.
        compat_start: start the moving average at 1 with weight 1, as PaddleSlim does, instead of at the
            first batch.
        window_size: steps that "range_abs_max" looks back.
        weight_preprocess: "pact" clips each weight with a learned threshold before it is quantized, or a
            maker of nn.Modules that are applied first.
        activation_preprocess: maker of nn.Modules applied to an activation before its quantizer.
        weight_quantizer: maker of nn.Modules used instead of quantrim's; with a method ``scale(weight)``
            they can be exported.
        activation_quantizer: the same for activations, with a method ``qparams()``.
        learned_rate: factor on the learning rate for learned steps, offsets and thresholds.
        learned_decay: L2 factor on the learned thresholds of PACT.
        skip: globs on call sites and module paths that stay float.
        skip_types: classes of modules that stay float.
        op_types: canonical ops that may be quantized; None for all that the target runs.
        warm_up: iterations in which ranges are observed and nothing is quantized.
        freeze_ranges_at: iteration from which observers stand still; None for never.
        rank_ranges: ranges that several processes observe: "first" process's, the "max" or the "mean" of all.
        freeze_batch_norm_at: iteration from which BatchNorms use and keep their running statistics.
    """

    weight: WeightMethod = "abs_max"
    activation: ActivationMethod = "moving_average"
    weight_per_channel: bool = True
    weight_bits: int = 8
    activation_bits: int = 8
    initial_range: Algo = "mse"
    moving_rate: float = 0.9
    compat_start: bool = False
    window_size: int = 10_000
    weight_preprocess: WeightPreprocess | ModuleMaker | None = None
    activation_preprocess: ModuleMaker | None = None
    weight_quantizer: ModuleMaker | None = None
    activation_quantizer: ModuleMaker | None = None
    learned_rate: float = 1.0
    learned_decay: float = 1e-4
    skip: tuple[str, ...] = ()
    skip_types: tuple[type[nn.Module], ...] = ()
    op_types: frozenset[str] | None = None
    warm_up: int = 0
    freeze_ranges_at: int | None = None
    freeze_batch_norm_at: int | None = None
    rank_ranges: RankRanges = "first"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: one of them is illegal.
        """
        _require_one_of("weight", self.weight, get_args(WeightMethod))
        _require_one_of("activation", self.activation, get_args(ActivationMethod))
        _require_one_of("initial_range", self.initial_range, ESTIMATORS)
        _require_one_of("rank_ranges", self.rank_ranges, get_args(RankRanges))
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
                raise ConfigError(f"{name} is {bits!r}; it must be 1 to 16.", field=name)
        _require_kinds(self)
        if not 0 < self.moving_rate < 1:
            raise ConfigError(
                f"moving_rate is {self.moving_rate}; it must be in (0, 1), e.g. 0.9.", field="moving_rate"
            )
        if self.weight_bits == 1 and (self.weight != "abs_max" or self.weight_preprocess is not None):
            raise ConfigError(
                "weight_bits 1 goes with weight 'abs_max' and no weight_preprocess.", field="weight_bits"
            )
        if self.weight == "range_abs_max" and self.weight_per_channel:
            raise ConfigError(
                "weight 'range_abs_max' keeps one scale per tensor; set weight_per_channel=False."
            )
        if isinstance(self.weight_preprocess, str) and self.weight_preprocess != "pact":
            raise ConfigError(
                f"weight_preprocess is {self.weight_preprocess!r}; legal: 'pact' or a module class.",
                field="weight_preprocess",
            )


def _require_kinds(config: QATConfig) -> None:
    """Refuse numbers, switches, makers and names of other kinds than the settings want."""
    for name, least in (
        ("window_size", 1),
        ("warm_up", 0),
        ("freeze_ranges_at", 0),
        ("freeze_batch_norm_at", 0),
    ):
        value = getattr(config, name)
        optional = value is None and name.startswith("freeze")
        if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            _refuse(name, value, f"a whole number from {least} on")
    for name in ("moving_rate", "learned_rate", "learned_decay"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            _refuse(name, value, "a number that isn't negative")
    for name in ("weight_per_channel", "compat_start"):
        if not isinstance(getattr(config, name), bool):
            _refuse(name, getattr(config, name), "True or False")
    for name in ("weight_preprocess", "activation_preprocess", "weight_quantizer", "activation_quantizer"):
        value = getattr(config, name)
        word = name == "weight_preprocess" and isinstance(value, str)
        if not (value is None or word or isinstance(value, nn.Module) or callable(value)):
            _refuse(name, value, "an nn.Module, a class of modules, or a function that makes one")
    _require_names(config)


def _require_names(config: QATConfig) -> None:
    if isinstance(config.skip, str) or not all(isinstance(glob, str) for glob in config.skip):
        _refuse("skip", config.skip, "a tuple of globs, e.g. ('head*',)")
    if not all(isinstance(kind, type) for kind in config.skip_types):
        _refuse("skip_types", config.skip_types, "a tuple of classes, e.g. (nn.Linear,)")
    ops = config.op_types
    if ops is not None and (isinstance(ops, str) or not all(isinstance(op, str) for op in ops)):
        _refuse("op_types", ops, "a set of canonical ops, e.g. frozenset({'conv'})")


def _refuse(name: str, value: Any, wanted: str) -> None:
    raise ConfigError(f"{name} is {value!r}; it must be {wanted}.", field=name)


def fresh(maker: ModuleMaker) -> nn.Module:
    """A module of its own for one tensor.

    Raises:
        ConfigError: what was made is no module.
    """
    made = copy.deepcopy(maker) if isinstance(maker, nn.Module) else maker()
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"{maker!r} makes {type(made).__name__}; quantizers and what stands before them must be nn.Modules."
        )
    return made


def method(name: str, **changes: Any) -> QATConfig:
    """Settings by the name of a method, with changes.

    Args:
        name: "default" (moving averages), "pact" (learned activation clips, weights clipped by a learned
            threshold) or "lsq" (learned steps of weights and activations).
        changes: fields of :class:`QATConfig`.

    Raises:
        ConfigError: unknown method or field, or an illegal value.
    """
    presets: dict[str, dict[str, Any]] = {
        "default": {},
        "pact": {"activation": "pact", "weight_preprocess": "pact"},
        "lsq": {"activation": "lsq", "weight": "lsq"},
    }
    if name not in presets:
        raise ConfigError(f"unknown method {name!r}{did_you_mean(name, presets)}")
    legal = [entry.name for entry in fields(QATConfig)]
    for key in changes:
        if key not in legal:
            raise ConfigError(f"unknown QAT setting {key!r}{did_you_mean(key, legal)}")
    return replace(QATConfig(), **{**presets[name], **changes})


def _require_one_of(name: str, value: Any, legal: Any) -> None:
    if value not in tuple(legal):
        raise ConfigError(f"{name} is {value!r}{did_you_mean(str(value), legal)}")
