"""Transforms by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from quantrim.errors import ConfigError, did_you_mean, in_words
from quantrim.vision.data.color import Normalize, RandomBlur, RandomDistort, RandomNoise
from quantrim.vision.data.geometry import (
    CenterCrop,
    Letterbox,
    LimitLong,
    Padding,
    PaddingByAspectRatio,
    RandomAffine,
    RandomHorizontalFlip,
    RandomPaddingCrop,
    RandomResizedCrop,
    RandomRotation,
    RandomScaleAspect,
    RandomVerticalFlip,
    Resize,
    ResizeByLong,
    ResizeByShort,
    ResizeRangeScaling,
    ResizeStepScaling,
    ScalePadding,
)
from quantrim.vision.data.sample import Transform

TRANSFORMS = {
    kind.__name__: kind
    for kind in (
        Resize, ResizeByLong, ResizeByShort, LimitLong, ResizeStepScaling, ResizeRangeScaling,
        RandomHorizontalFlip, RandomVerticalFlip, Normalize, Padding, RandomPaddingCrop, RandomBlur,
        RandomNoise, RandomRotation, RandomDistort, RandomResizedCrop, CenterCrop, RandomAffine,
        RandomScaleAspect, PaddingByAspectRatio, ScalePadding, Letterbox,
    )
}  # fmt: skip

#: Transforms of training with boxes. They need torch, which deployment does without.
_OF_BOXES = ("MixUp", "Mosaic", "RandomExpand", "RandomIoUCrop")


def transform_named(spec: Mapping[str, object]) -> Transform:
    """Transform from its YAML form ``{type: Resize, target_size: [512, 512]}``.

    Raises:
        ConfigError: no mapping, an unknown type or argument, or an argument of another type.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError(f"transform {spec!r}: it must be a mapping such as {{type: Normalize}}.")
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in spec.items() if key != "type"}
    kind = _kind(str(spec.get("type")))
    fields = kind.__dataclass_fields__
    for key in arguments:
        if key not in fields:
            raise ConfigError(f"transform {kind.__name__}: unknown argument {key!r}{did_you_mean(key, fields)}")
    try:
        return TypeAdapter[Transform](kind).validate_python(arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"transform {kind.__name__}: {where} {in_words(first)}") from error


def _kind(name: str) -> Any:
    if name in _OF_BOXES:
        from quantrim.vision.data import detection

        return getattr(detection, name)
    if name not in TRANSFORMS:
        raise ConfigError(f"unknown transform {name!r}{did_you_mean(name, (*TRANSFORMS, *_OF_BOXES))}")
    return TRANSFORMS[name]
