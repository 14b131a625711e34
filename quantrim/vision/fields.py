"""What the models of YAML files share: sections, transforms, and errors in the words of the file.

Nothing here needs torch, so that a deployed file runs without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from quantrim.errors import ConfigError, did_you_mean, in_words
from quantrim.vision.data.sample import Transform
from quantrim.vision.data.transforms import transform_named

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0)]
Classes = Annotated[int, Field(ge=1, le=2**16)]
Pair = tuple[Count, Count]


class ConfigSection(BaseModel):
    """A mapping with these keys and no others."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for name in given:
                if name not in (legal := cls.legal_keys(given)):
                    owner = f" of {given['type']}" if isinstance(given.get("type"), str) else ""
                    hint = cls.hint(name) or did_you_mean(name, legal)
                    message = f"unknown key {name!r}{owner}{hint}"
                    raise PydanticCustomError("unknown_key", "{message}", {"key": name, "message": message})
        return given

    @classmethod
    def legal_keys(cls, given: Mapping[str, Any]) -> set[str]:
        """Keys that this mapping may hold."""
        return set(cls.model_fields)

    @classmethod
    def hint(cls, name: str) -> str:
        """What to say of an unknown key instead of the nearest legal one."""
        return ""


@dataclass(frozen=True, slots=True)
class TransformSpec:
    """A transform, and the mapping that asked for it."""

    given: Mapping[str, Any]
    transform: Transform


def _transform(given: Any) -> TransformSpec:
    try:
        return TransformSpec(given, transform_named(given))
    except ConfigError as error:
        raise ValueError(str(error)) from error


Transforms = tuple[Annotated[TransformSpec, BeforeValidator(_transform)], ...]


#: Examples of what a mapping must be.
_EXAMPLES = {
    "learning_rate": "{value: 0.01}",
    "loss": "{types: [{type: CrossEntropyLoss}], coef: [1]}",
    "optimizer": "{type: sgd, momentum: 0.9}",
    "model": "{type: BiSeNetV2}",
    "lr_scheduler": "{type: PolynomialDecay, learning_rate: 0.01}",
    "test_config": "{aug_eval: true, flip_horizontal: true}",
}


def key_and_rule(fault: Mapping[str, Any], values: Any) -> tuple[str, str, str]:
    """Where one of pydantic's errors is, and what is wrong.

    Args:
        fault: an entry of ``ValidationError.errors()``.
        values: what was validated; parts of the error's place that are no keys of it name a type of a union.

    Returns:
        Dotted key, message, and the dotted key whose line is meant.
    """
    path = list(_written(fault["loc"], values))
    kind = fault["type"]
    if kind == "missing":
        path.append(str(fault["loc"][-1]))
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        path.append("type")
    key = line_key = ".".join(path)
    if kind == "unknown_key":
        line_key = ".".join((*path, fault["ctx"]["key"]))
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        example = _EXAMPLES.get(path[-1] if path else "", "{type: Name}")
        return key, f"is {fault['input']!r}; it must be a mapping such as {example}.", line_key
    return key, fault["ctx"]["message"] if kind == "unknown_key" else in_words(fault), line_key


def _written(loc: tuple[str | int, ...], values: Any) -> Iterator[str]:
    for part in loc:
        mapped = isinstance(values, Mapping) and part in values
        if mapped or (isinstance(values, list) and isinstance(part, int) and part < len(values)):
            values = values[part]
            yield str(part)
