"""PaddleSeg's YAML dialect: ``type:`` objects, ``_base_`` inheritance, both learning-rate forms.

A file is read into plain values (:mod:`quantrim.vision.document`), validated into the models of
:mod:`quantrim.vision.schema`, and turned into objects by the ``build_*`` functions. An error names the file,
the line, the key and the nearest legal name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from quantrim.distillation import Distillation
from quantrim.errors import ConfigError, ModelError
from quantrim.vision import losses
from quantrim.vision.data.build import Facts, facts_of, open_data
from quantrim.vision.data.datasets import VisionData, batches_per_epoch
from quantrim.vision.data.sample import Transform
from quantrim.vision.detection import DETECTION_LOSSES, detection_loss
from quantrim.vision.document import Document, read_document
from quantrim.vision.fields import key_and_rule
from quantrim.vision.models import model_from_spec
from quantrim.vision.models.detection import is_detector, require_detector
from quantrim.vision.schedules import Factor, cosine, piecewise, polynomial, warmed
from quantrim.vision.schema import (
    LOSSES,
    ConfigSpec,
    Cosine,
    DataSpec,
    LossSpec,
    MixedLoss,
    Piecewise,
    Polynomial,
    StepDecay,
)
from quantrim.vision.train import LossFunction

__all__ = ["Config", "build_data", "build_loss", "build_model", "build_optimizer", "data_facts",
           "export_transforms", "load_config"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """A validated configuration.

    Attributes:
        document: the file, its merged values and their lines.
        spec: the values as they are used.
        trust_code: any import path may build the model.
    """

    document: Document
    spec: ConfigSpec
    trust_code: bool = False

    @property
    def path(self) -> Path:
        """The file it came from."""
        return self.document.path

    def iterations(self, batch_size: int | None = None) -> int:
        """Training iterations: ``iters``, or ``epochs`` times the batches of an epoch.

        Args:
            batch_size: samples a step and process; the configuration's by default. Only epochs depend on it,
                and on WORLD_SIZE, the number of processes that torchrun or accelerate started.
        """
        if self.spec.epochs is None:
            return self.spec.iters or 0
        size = self.batch_size if batch_size is None else batch_size
        each = batches_per_epoch(len(build_data(self)), size, int(os.environ.get("WORLD_SIZE", "1")))
        return round(self.spec.epochs * each)

    @property
    def batch_size(self) -> int:
        """Samples a step and process."""
        return self.spec.batch_size

    @property
    def seed(self) -> int:
        """Of everything random; 0 where the configuration names none."""
        return self.spec.seed or 0

    @property
    def judged(self) -> str:
        """The data set that metrics are of: validation's, or training's where there is none."""
        return "train_dataset" if self.spec.val_dataset is None else "val_dataset"

    def fail(self, key: str, message: str) -> ConfigError:
        """Error that names the file, the line and the key."""
        return self.document.fail(key, message)


def load_config(path: str | Path, overrides: Sequence[str] = (), *, trust_code: bool = False) -> Config:
    """Read, merge and check a configuration.

    Args:
        path: .yml or .yaml file.
        overrides: ``key.inner=value`` texts; values are YAML. None of them is ignored, 0 included.
        trust_code: let the configuration call any class or function by its import path, as a program may.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown or stands twice, ``_base_`` runs in a
            circle, a needed key is missing, a value is illegal.
    """
    document = read_document(path, overrides)
    try:
        return Config(document, ConfigSpec.model_validate(document.values), trust_code)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise document.fail(*key_and_rule(first, document.values)) from error


def build_data(config: Config, key: str = "train_dataset", *, seed: int = 0) -> VisionData:
    """Data set of ``train_dataset`` or ``val_dataset``.

    Raises:
        ConfigError: the key is missing, or a declared number of classes contradicts the data.
        DataError: files are missing.
    """
    spec = config.spec.train_dataset if key == "train_dataset" else config.spec.val_dataset
    if spec is None:
        raise config.fail(key, "is missing; it is a mapping with a type.")
    data = open_data(spec, seed)
    _require_classes(config, key, spec, data.num_classes)
    return data


def data_facts(config: Config) -> Facts:
    """Task, classes and image size of the data that metrics are of, without opening them.

    Raises:
        ConfigError: a declared number of classes contradicts the data set.
    """
    spec = config.spec.val_dataset or config.spec.train_dataset
    facts = facts_of(spec)
    if facts.num_classes is None:
        return replace(facts, num_classes=config.spec.model.num_classes)
    _require_classes(config, config.judged, spec, facts.num_classes)
    return facts


def _require_classes(config: Config, key: str, spec: DataSpec, count: int) -> None:
    for where, given in (("model", config.spec.model.num_classes), (key, spec.num_classes)):
        if given is not None and given != count:
            raise config.fail(f"{where}.num_classes", f"is {given}, but {key} has {count} classes.")


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Model of the configuration; the data set's number of classes is used where it names none."""
    spec = {"num_classes": num_classes, **config.spec.model.arguments()}
    try:
        return model_from_spec(spec, trust_code=config.trust_code)
    except ConfigError as error:
        raise config.fail("model", str(error)) from error


def build_distillation(config: Config, given: Distillation | None = None) -> Distillation:
    """Settings of distillation, with the weight of the configuration's ``distill_loss`` where it has one."""
    given, spec = given or Distillation(), config.spec.distill_loss
    return given if spec is None else replace(given, weight=spec.coef[0], temperature=1.0)


def build_loss(config: Config, ignore_index: int, model: nn.Module | None = None) -> LossFunction:
    """One loss for each output of the model, with coefficients; of a detector one for all its maps.

    Args:
        config: with or without a loss; a detector's own is its default.
        ignore_index: label of the data set that doesn't count.
        model: what is trained, for detectors; a fresh one of the configuration by default.

    Raises:
        ConfigError: the loss ignores another label than the data set, or is of another task.
    """
    spec = config.spec.loss
    kinds = [entry.type for entry in spec.types]
    unset = "loss" not in config.spec.model_fields_set
    if any(kind in DETECTION_LOSSES for kind in kinds) or (unset and model is not None and is_detector(model)):
        return _boxes_loss(config, model)
    parts = [_loss(config, entry, ignore_index) for entry in spec.types]
    return losses.Weighted(parts, spec.coef, partial(config.fail, "loss.coef"))


def _boxes_loss(config: Config, model: nn.Module | None) -> LossFunction:
    entry = config.spec.loss.types[0] if "loss" in config.spec.model_fields_set else None
    if entry is not None and len(config.spec.loss.types) > 1:
        raise config.fail("loss.types", "a detector has one loss for all its maps; give one type.")
    if model is None:
        model = build_model(config, config.spec.model.num_classes or 1)
    try:
        decoder = require_detector(model).decoder
        if entry is None:
            return detection_loss(decoder)
        return detection_loss(decoder, entry.type, **entry.arguments())
    except (ConfigError, ModelError) as error:
        raise config.fail("loss.types", str(error)) from error


def _loss(config: Config, spec: LossSpec, ignore_index: int) -> losses.Loss:
    if isinstance(spec, MixedLoss):
        built = [_loss(config, part, ignore_index) for part in spec.losses]
        return losses.mixed(list(zip(built, spec.coef, strict=True)))
    arguments = {"ignore_index": ignore_index, **spec.arguments()}
    if arguments["ignore_index"] != ignore_index:
        message = f"{spec.type}: ignore_index differs from the data set's {ignore_index}."
        raise config.fail("loss.types", message)
    return partial(LOSSES[spec.type], **arguments)


def build_optimizer(
    config: Config, model: nn.Module, *, iterations: int | None = None, learning_rate: float | None = None
) -> tuple[Optimizer, LRScheduler]:
    """Optimizer and schedule; arguments that are not None replace the configuration's.

    Raises:
        ConfigError: the learning rate is no number above 0.
    """
    spec, schedule = config.spec.optimizer, config.spec.schedule
    factor = _factor(schedule, config.iterations() if iterations is None else iterations)
    rate = schedule.learning_rate if learning_rate is None else learning_rate
    if not 0 < rate < math.inf:
        raise ConfigError(f"learning_rate: is {rate}; it must be a number above 0.")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer: Optimizer
    if spec.type in ("sgd", "momentum"):
        optimizer = torch.optim.SGD(parameters, rate, spec.momentum, weight_decay=spec.weight_decay)
    else:
        chosen = torch.optim.Adam if spec.type == "adam" else torch.optim.AdamW
        optimizer = chosen(parameters, rate, weight_decay=spec.weight_decay)
    return optimizer, LambdaLR(optimizer, factor)


def _factor(spec: Polynomial | Cosine | Piecewise | StepDecay, iterations: int) -> Factor:
    """Factor of the base rate by iteration, with the warm-up."""
    factor, start = _decay(spec, iterations), spec.warmup_start_lr / spec.learning_rate
    if start == 0:
        return factor
    return lambda step: start + (1 - start) * factor(step) if step < spec.warmup_iters else factor(step)


def _decay(spec: Polynomial | Cosine | Piecewise | StepDecay, iterations: int) -> Factor:
    rate, warmup = spec.learning_rate, spec.warmup_iters
    match spec:
        case Polynomial():
            length = iterations if spec.decay_steps is None else warmup + spec.decay_steps
            return polynomial(length, power=spec.power, end=spec.end_lr / rate, warmup=warmup)
        case Cosine():
            length = iterations if spec.T_max is None else warmup + spec.T_max
            return cosine(length, end=spec.eta_min / rate, warmup=warmup)
        case Piecewise():
            return warmed(piecewise(spec.boundaries, [value / rate for value in spec.values]), warmup)
        case StepDecay():
            step, gamma = spec.step_size, spec.gamma
            return warmed(lambda iteration: gamma ** (iteration // step), warmup)


def export_transforms(config: Config) -> tuple[list[Mapping[str, Any]], tuple[Transform, ...]]:
    """Preprocessing at deployment: ``export.transforms``, else what validation does, as YAML and objects."""
    specs = config.spec.export.transforms
    if specs is None:
        specs = (config.spec.val_dataset or config.spec.train_dataset).transforms
    return [spec.given for spec in specs], tuple(spec.transform for spec in specs)
