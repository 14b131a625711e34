"""The shape of a configuration: which keys hold mappings, lists, numbers, and within which limits.

Only what every builder relies on is said here; what a type's own arguments may be, its builder knows. Keys of
PaddleSeg that change nothing here are legal, so that its configurations are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantrim.errors import did_you_mean, in_words

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Open(BaseModel):
    """A mapping whose other keys its builder checks."""

    model_config = ConfigDict(extra="allow")


class _Closed(BaseModel):
    """A mapping with these keys and no others."""

    model_config = ConfigDict(extra="forbid")


class _Typed(_Open):
    type: str


class _Model(_Typed):
    num_classes: Count | None = None


class _DataSet(_Typed):
    dataset_root: str = "."
    mode: str = "train"
    transforms: list[_Typed] = Field(default_factory=list)
    num_classes: Count | None = None
    ignore_index: int = 255
    count: Count | None = None
    size: Count | None = None
    seed: int | None = None
    difficulty: Annotated[float, Field(ge=0, le=1)] = 0.6
    separator: str | None = None
    train_path: str | None = None
    val_path: str | None = None
    test_path: str | None = None
    img_channels: Literal[1, 3] = 3
    edge: bool = False


class _Optimizer(_Closed):
    type: str = "sgd"
    momentum: Share = 0.9
    weight_decay: Share = 0.0


class _Schedule(_Closed):
    """Keys of every schedule; rates are absolute, steps are iterations.

    ``last_epoch`` and ``verbose`` are Paddle's, of which only the values that change nothing are taken.
    """

    type: str
    learning_rate: Positive
    warmup_iters: Annotated[int, Field(ge=0)] = 0
    warmup_start_lr: Share = 0.0
    last_epoch: Literal[-1] = -1
    verbose: bool = False


class Polynomial(_Schedule):
    """Down to ``end_lr`` within ``decay_steps`` after the warm-up; within the whole run by default."""

    power: float = 0.9
    end_lr: Share = 0.0
    decay_steps: Count | None = None
    cycle: Literal[False] = False


class Cosine(_Schedule):
    """Down to ``eta_min`` within ``T_max`` steps after the warm-up; within the whole run by default."""

    T_max: Count | None = None
    eta_min: Share = 0.0


class Steps(_Schedule):
    """``values[i]`` until ``boundaries[i]``."""

    values: Annotated[list[Positive], Field(min_length=1)]
    boundaries: list[Count]


class Stairs(_Schedule):
    """``gamma`` times less every ``step_size``."""

    step_size: Count
    gamma: Positive = 0.1


Schedule = Polynomial | Cosine | Steps | Stairs


class _OldRate(_Closed):
    value: Positive
    decay: dict[str, Any] | None = None


class _Loss(_Typed):
    losses: list[_Loss] = Field(default_factory=list)


class _Losses(_Closed):
    types: Annotated[list[_Loss], Field(min_length=1)]
    coef: Annotated[list[float], Field(min_length=1)]


class _Export(_Closed):
    transforms: list[_Typed] | None = None


class _Shape(_Open):
    model: _Model
    train_dataset: _DataSet
    val_dataset: _DataSet | None = None
    batch_size: Count = 1
    iters: Count | None = None
    epochs: Positive | None = None
    optimizer: _Optimizer | None = None
    learning_rate: _OldRate | None = None
    loss: _Losses | None = None
    test_config: dict[str, Any] | None = None
    export: _Export | None = None
    seed: int | None = None


#: What ``lr_scheduler.type`` may say.
_SCHEDULES: Mapping[str, type[Schedule]] = {
    "PolynomialDecay": Polynomial,
    "CosineAnnealingDecay": Cosine,
    "Cosine": Cosine,
    "PiecewiseDecay": Steps,
    "StepDecay": Stairs,
}
#: What ``learning_rate.decay.type`` may say, PaddleSeg's form before 2.1.
_OLD_NAMES = {
    "poly": "PolynomialDecay",
    "piecewise": "PiecewiseDecay",
    "cosine": "CosineAnnealingDecay",
    "stepdecay": "StepDecay",
}
_CLOSED: Mapping[str, type[BaseModel]] = {
    "optimizer": _Optimizer,
    "learning_rate": _OldRate,
    "loss": _Losses,
    "export": _Export,
}


def fault(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first key of a configuration that holds something else than it should, and what is wrong with it.

    Args:
        values: merged values of a configuration.

    Returns:
        Dotted key and message, or None.
    """
    try:
        _Shape.model_validate(values)
    except ValidationError as error:
        return _told(error, ())
    spec, where = _schedule_spec(values)
    try:
        kind = _Typed.model_validate(spec).type
    except ValidationError as error:
        return _told(error, (where,))
    if kind not in _SCHEDULES:
        old = where != "lr_scheduler"
        given = (values["learning_rate"]["decay"] if old else spec)["type"]
        return f"{where}.type", f"unknown {given!r}{did_you_mean(given, _OLD_NAMES if old else _SCHEDULES)}"
    try:
        _SCHEDULES[kind].model_validate(spec)
    except ValidationError as error:
        return _told(error, (where,), _SCHEDULES[kind])
    return None


def schedule_of(values: Mapping[str, Any]) -> Schedule:
    """The schedule that ``lr_scheduler`` or the older ``learning_rate`` of a faultless configuration says."""
    spec, _ = _schedule_spec(values)
    return _SCHEDULES[spec["type"]].model_validate(spec)


def _schedule_spec(values: Mapping[str, Any]) -> tuple[Any, str]:
    """What ``lr_scheduler`` says, or ``learning_rate`` in its words; and the key where it stands."""
    spec = values.get("lr_scheduler")
    if spec is not None:
        return spec, "lr_scheduler"
    old = values["learning_rate"]
    decay = dict(old.get("decay") or {"type": "poly", "power": 0.0})
    kind = str(decay.setdefault("type", "poly"))
    spec = {**decay, "type": _OLD_NAMES.get(kind, ""), "learning_rate": old["value"]}
    return spec, "learning_rate.decay"


def _told(
    error: ValidationError, inside: Sequence[str], shape: type[BaseModel] | None = None
) -> tuple[str, str]:
    """Key and message of the first fault; ``shape`` is the model that ``inside`` leads to."""
    first = error.errors(include_url=False)[0]
    path = (*inside, *map(str, first["loc"]))
    key, given = ".".join(path), first["input"]
    if first["type"] == "extra_forbidden":
        legal = shape or _CLOSED[path[0]]
        return ".".join(path[:-1]), f"unknown key {path[-1]!r}{did_you_mean(path[-1], legal.model_fields)}"
    if first["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return key, f"is {given!r}; it must be a mapping such as {_EXAMPLES.get(path[-1], '{type: Name}')}."
    return key, in_words(first)


_EXAMPLES = {
    "learning_rate": "{value: 0.01}",
    "loss": "{types: [{type: CrossEntropyLoss}], coef: [1]}",
    "optimizer": "{type: sgd, momentum: 0.9}",
    "model": "{type: BiSeNetV2}",
    "lr_scheduler": "{type: PolynomialDecay, learning_rate: 0.01}",
    "test_config": "{aug_eval: true, flip_horizontal: true}",
}
