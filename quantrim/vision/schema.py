"""The shape of a configuration: which keys hold mappings, lists, numbers, and within which limits.

Only what every builder relies on is said here; what a type's own arguments may be, its builder knows.
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


class _Optimizer(_Closed):
    type: str = "sgd"
    momentum: Share = 0.9
    weight_decay: Share = 0.0


class _Schedule(_Open):
    type: str
    learning_rate: Positive
    power: float = 0.9
    end_lr: Share = 0.0
    warmup_iters: Annotated[int, Field(ge=0)] = 0


class _Steps(_Schedule):
    type: Literal["PiecewiseDecay"]
    values: Annotated[list[Positive], Field(min_length=1)]
    boundaries: list[Count]


class _Stairs(_Schedule):
    type: Literal["StepDecay"]
    step_size: Count
    gamma: Positive = 0.1


class _OldRate(_Closed):
    value: Positive
    decay: dict[str, Any] | None = None


class _Loss(_Typed):
    losses: list[_Loss] = Field(default_factory=list)


class _Losses(_Closed):
    types: Annotated[list[_Loss], Field(min_length=1)]
    coef: Annotated[list[float], Field(min_length=1)]


class _Export(_Open):
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


#: Schedules that need keys of their own.
_SCHEDULES: Mapping[object, type[_Schedule]] = {"PiecewiseDecay": _Steps, "StepDecay": _Stairs}


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
        return _told(error, (), _Shape)
    schedule = values.get("lr_scheduler")
    if schedule is None:
        return None
    kind = schedule.get("type") if isinstance(schedule, Mapping) else None
    try:
        _SCHEDULES.get(kind, _Schedule).model_validate(schedule)
    except ValidationError as error:
        return _told(error, ("lr_scheduler",), _Schedule)
    return None


def _told(error: ValidationError, inside: Sequence[str], shape: type[BaseModel]) -> tuple[str, str]:
    first = error.errors(include_url=False)[0]
    path = (*inside, *map(str, first["loc"]))
    key, given = ".".join(path), first["input"]
    if first["type"] == "extra_forbidden":
        legal = _Optimizer if path[0] == "optimizer" else _OldRate if path[0] == "learning_rate" else _Losses
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
