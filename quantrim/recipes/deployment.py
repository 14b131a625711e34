"""``deploy.yaml``: what a file needs to be run on images, and nothing of how it was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from quantrim.detection import Decoder, Thresholds, decoder_from, thresholds_from
from quantrim.errors import ConfigError
from quantrim.vision.data.sample import Sample, Transform, apply
from quantrim.vision.document import read_document
from quantrim.vision.fields import Transforms, key_and_rule


class _Deploy(BaseModel):
    """The section ``Deploy``; keys of PaddleSeg that say nothing to quantrim are legal."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True, protected_namespaces=())
    transforms: Transforms
    model: str | None = None
    task: str | None = None
    output: Literal["none", "argmax", "softmax", "raw", "decoded", "nms"] = "none"
    classes: tuple[str, ...] = ()
    precision: str | None = None
    channels: Literal[1, 3] = 3
    decoder: dict[str, Any] | None = None
    thresholds: dict[str, float] | None = None


class _File(BaseModel):
    Deploy: _Deploy


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a ``deploy.yaml`` says of a model.

    Attributes:
        transforms: preprocessing, in order.
        task: "segmentation", "classification", "detection", or another word; None where the file does
            not say.
        class_names: names of the classes, none where it does not say.
        model: the file, beside ``deploy.yaml``; None where it does not say.
        output: what stands behind the logits ("none", "argmax", "softmax") or a detector's maps ("raw",
            "decoded", "nms").
        channels: of the images.
        precision: in which the file shall run; None for the engine's own choice of FP32.
        decoder: what the outputs of a detector mean.
        thresholds: which of its boxes are told; None where the file does not say.
    """

    transforms: tuple[Transform, ...]
    task: str | None
    class_names: tuple[str, ...]
    model: Path | None = None
    output: str = "none"
    channels: int = 3
    precision: str | None = None
    decoder: Decoder | None = None
    thresholds: Thresholds | None = None


def read_deployment(deploy: str | Path) -> Deployment:
    """Read a ``deploy.yaml``.

    Raises:
        ConfigError: the file is missing, has no list ``Deploy.transforms``, or a value is illegal.
    """
    document = read_document(deploy)
    try:
        found = _File.model_validate(document.values).Deploy
        decoder = None if found.decoder is None else decoder_from(found.decoder)
    except ValidationError as error:
        key, rule, line_key = key_and_rule(error.errors(include_url=False)[0], document.values)
        raise document.fail(key, rule, line_key) from error
    except ConfigError as error:
        raise document.fail("Deploy.decoder", str(error)) from error
    try:
        thresholds = None if found.thresholds is None else thresholds_from(found.thresholds)
    except ConfigError as error:
        raise document.fail("Deploy.thresholds", str(error)) from error
    return Deployment(
        transforms=tuple(one.transform for one in found.transforms),
        task=found.task,
        class_names=found.classes,
        model=None if found.model is None else Path(deploy).parent / found.model,
        output=found.output,
        channels=found.channels,
        precision=found.precision,
        decoder=decoder,
        thresholds=thresholds,
    )


def load_transforms(deploy: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """Preprocessing of a ``deploy.yaml``: RGB uint8 (H, W, 3) → float32 (C, H, W).

    Raises:
        ConfigError: as :func:`read_deployment`.
    """
    transforms = read_deployment(deploy).transforms
    generator = np.random.default_rng(0)

    def prepare(image: np.ndarray) -> np.ndarray:
        sample = apply(transforms, Sample(image.astype(np.float32)), generator)
        return np.ascontiguousarray(sample.image.transpose(2, 0, 1), np.float32)

    return prepare
