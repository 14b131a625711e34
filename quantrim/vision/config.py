"""PaddleSeg's YAML dialect: ``type:`` objects, ``_base_`` inheritance, both learning-rate forms.

A file is read into plain dictionaries, merged, validated, and turned into objects by the ``build_*``
functions. An error names the file, the key, and the nearest legal name.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from quantrim.errors import ConfigError, did_you_mean
from quantrim.vision import losses
from quantrim.vision.data.build import build_data, check_keys
from quantrim.vision.data.datasets import batches_per_epoch
from quantrim.vision.data.sample import Transform
from quantrim.vision.data.transforms import transform_named
from quantrim.vision.models import model_from_spec
from quantrim.vision.schedules import Factor, cosine, piecewise, polynomial, warmed
from quantrim.vision.schema import Cosine, Polynomial, Schedule, Stairs, Steps, fault, schedule_of
from quantrim.vision.train import LossFunction

__all__ = ["Config", "build_data", "build_loss", "build_model", "build_optimizer", "export_transforms",
           "load_config"]  # fmt: skip
KEYS = (
    "batch_size", "iters", "epochs", "train_dataset", "val_dataset", "optimizer", "lr_scheduler",
    "learning_rate", "loss", "model", "distill_loss", "test_config", "export", "seed",
)  # fmt: skip
_LENGTHS = frozenset({"iters", "epochs"})
LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "CrossEntropyLoss": losses.cross_entropy,
    "OhemCrossEntropyLoss": losses.ohem_cross_entropy,
    "BootstrappedCrossEntropyLoss": losses.bootstrapped_cross_entropy,
    "DiceLoss": losses.dice_loss,
    "FocalLoss": losses.focal_loss,
    "LovaszSoftmaxLoss": losses.lovasz_softmax,
    "BCELoss": losses.binary_cross_entropy,
}


@dataclass(frozen=True, slots=True)
class Config:
    """A validated configuration.

    Attributes:
        path: the file it came from.
        values: merged plain values, keys from :data:`KEYS`.
    """

    path: Path
    values: Mapping[str, Any]

    def iterations(self, batch_size: int | None = None) -> int:
        """Training iterations: ``iters``, or ``epochs`` times the batches of an epoch.

        Args:
            batch_size: samples a step and process; the configuration's by default. Only epochs depend on it,
                and on WORLD_SIZE, the number of processes that torchrun or accelerate started.
        """
        if "iters" in self.values:
            return int(self.values["iters"])
        size = self.batch_size if batch_size is None else batch_size
        each = batches_per_epoch(len(build_data(self)), size, int(os.environ.get("WORLD_SIZE", "1")))
        return round(float(self.values["epochs"]) * each)

    @property
    def batch_size(self) -> int:
        """Samples a step and process."""
        return int(self.values.get("batch_size", 1))

    def fail(self, key: str, message: str) -> ConfigError:
        """Error that names the file and the key."""
        return ConfigError(f"{self.path}: {key}: {message}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, merge and check a configuration.

    Args:
        path: .yml or .yaml file.
        overrides: ``key.inner=value`` texts; values are YAML. None of them is ignored, 0 included.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown, ``_base_`` runs in a circle, a needed
            key is missing.
    """
    path = Path(path)
    values = _merged(path, ())
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"override {text!r} is not of the form key=value.", field="override")
        _assign(_without_length(values, (key,)), key.split("."), _yaml(value, f"override {key}"), text)
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}{did_you_mean(key, KEYS)}")
    for key in ("model", "train_dataset"):
        if key not in values:
            raise ConfigError(f"{path}: key {key!r} is missing.")
    if ("iters" in values) == ("epochs" in values):
        raise ConfigError(f"{path}: give either 'iters' or 'epochs'.")
    if values.get("lr_scheduler") is None and values.get("learning_rate") is None:
        raise ConfigError(f"{path}: neither 'lr_scheduler' nor 'learning_rate' is given.")
    config = Config(path, values)
    if wrong := fault(values):
        raise config.fail(*wrong)
    for key in ("train_dataset", "val_dataset"):
        check_keys(config, key)
    return config


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: no valid YAML ({' '.join(str(error).split())}).") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no text file in UTF-8 ({error.reason}).") from error


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.suffix not in (".yml", ".yaml"):
        raise ConfigError(f"{path}: a configuration is a .yml or .yaml file.")
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration.")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: _base_ runs in a circle: {' -> '.join(str(p) for p in (*seen, path))}")
    values = _yaml(_text(path), str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a YAML mapping, this is a {type(values).__name__}.")
    base = values.pop("_base_", None)
    if base is None:
        return _without_marks(values)
    if not isinstance(base, str):
        raise ConfigError(f"{path}: _base_: is {base!r}; it must be the path of a configuration.")
    inherited = _merged(path.parent / base, (*seen, path.resolve()))
    return _merge(_without_length(inherited, values), values)


def _without_length(values: dict[str, Any], new: Iterable[str]) -> dict[str, Any]:
    """The values, without iters and epochs if a new value sets one of them: the two exclude each other."""
    if not _LENGTHS.isdisjoint(new):
        for key in _LENGTHS:
            values.pop(key, None)
    return values


def _merge(base: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``new`` over ``base``; a mapping with ``_inherited_: False`` replaces instead of merging."""
    merged = copy.deepcopy(base)
    for key, value in new.items():
        if isinstance(value, dict) and value.get("_inherited_", True) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = _without_marks(value)
    merged.pop("_inherited_", None)
    return merged


def _without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_marks(inner) for key, inner in value.items() if key != "_inherited_"}
    return [_without_marks(inner) for inner in value] if isinstance(value, list) else value


def _assign(values: Any, keys: Sequence[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        place = _place(values, key, text)
        values = values[place] if isinstance(values, list) else values.setdefault(place, {})
        if not isinstance(values, dict | list):
            raise ConfigError(f"override {text!r}: {key!r} holds a {type(values).__name__}, no mapping.")
    values[_place(values, keys[-1], text)] = value


def _place(values: Any, key: str, text: str) -> Any:
    """The key itself, or its number where the values are a list."""
    if not isinstance(values, list):
        return key
    if not key.isdecimal() or int(key) >= len(values):
        raise ConfigError(f"override {text!r}: {key!r} is no place in a list of {len(values)}; give 0 to "
                          f"{len(values) - 1}.")  # fmt: skip
    return int(key)


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Model of the configuration; the data set's number of classes is used where it names none."""
    try:
        return model_from_spec({"num_classes": num_classes, **config.values["model"]})
    except ConfigError as error:
        raise config.fail("model", str(error)) from error


def build_loss(config: Config, ignore_index: int) -> LossFunction:
    """One loss for each output of the model, with coefficients.

    Raises:
        ConfigError: unknown loss, or numbers of types and coefficients differ.
    """
    spec = config.values.get("loss", {"types": [{"type": "CrossEntropyLoss"}], "coef": [1]})
    types, coef = list(spec.get("types", ())), [float(c) for c in spec.get("coef", ())]
    if not types or not coef or (len(types) not in (1, len(coef))):
        raise config.fail("loss", f"{len(types)} types, {len(coef)} coefficients; give one of each an output.")
    return losses.weighted([_loss(config, entry, ignore_index) for entry in types], coef)


def _loss(config: Config, entry: Mapping[str, Any], ignore_index: int) -> losses.Loss:
    kind = str(entry.get("type"))
    if kind == "MixedLoss":
        return _mixed(config, entry, ignore_index)
    if kind not in LOSSES:
        raise config.fail("loss.types", f"unknown loss {kind!r}{did_you_mean(kind, [*LOSSES, 'MixedLoss'])}")
    arguments = {key: value for key, value in entry.items() if key != "type"}
    if arguments.pop("ignore_index", ignore_index) != ignore_index:
        raise config.fail("loss.types", f"{kind}: ignore_index differs from the data set's {ignore_index}.")
    _check_arguments(
        config, kind, arguments, inspect.signature(LOSSES[kind]).parameters.keys() - {"logits", "labels"}
    )
    return partial(LOSSES[kind], ignore_index=ignore_index, **arguments)


def _mixed(config: Config, entry: Mapping[str, Any], ignore_index: int) -> losses.Loss:
    _check_arguments(config, "MixedLoss", entry, {"type", "losses", "coef"})
    parts, coef = list(entry.get("losses", ())), list(entry.get("coef", ()))
    if not parts or len(parts) != len(coef):
        raise config.fail("loss.types", f"MixedLoss has {len(parts)} losses, {len(coef)} coefficients (coef); "
                          "give one of each.")  # fmt: skip
    built = [_loss(config, part, ignore_index) for part in parts]
    return losses.mixed(list(zip(built, map(float, coef), strict=True)))


def _check_arguments(config: Config, kind: str, given: Iterable[str], legal: Collection[str]) -> None:
    for name in given:
        if name not in legal:
            raise config.fail("loss.types", f"{kind} has no argument {name!r}{did_you_mean(name, legal)}")


def build_optimizer(
    config: Config, model: nn.Module, *, iterations: int | None = None, learning_rate: float | None = None
) -> tuple[Optimizer, LRScheduler]:
    """Optimizer and schedule; arguments that are not None replace the configuration's.

    Raises:
        ConfigError: unknown optimizer or schedule.
    """
    rate, factor = _schedule(config, config.iterations() if iterations is None else iterations)
    rate = rate if learning_rate is None else learning_rate
    if not 0 < rate < math.inf:
        raise config.fail("learning rate", f"is {rate}; it must be a number above 0.")
    spec = dict(config.values.get("optimizer", {"type": "sgd"}))
    kind, decay = str(spec.get("type", "sgd")).lower(), float(spec.get("weight_decay", 0.0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer: Optimizer
    if kind in ("sgd", "momentum"):
        optimizer = torch.optim.SGD(parameters, rate, float(spec.get("momentum", 0.9)), weight_decay=decay)
    elif kind in ("adam", "adamw"):
        chosen = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        optimizer = chosen(parameters, rate, weight_decay=decay)
    else:
        raise config.fail("optimizer.type", f"unknown {kind!r}{did_you_mean(kind, ('sgd', 'adam', 'adamw'))}")
    return optimizer, LambdaLR(optimizer, factor)


def _schedule(config: Config, iterations: int) -> tuple[float, Factor]:
    """Base rate, and its factor by iteration with the warm-up."""
    spec = schedule_of(config.values)
    factor, start = _factor(config, spec, iterations), spec.warmup_start_lr / spec.learning_rate
    if start == 0:
        return spec.learning_rate, factor
    return (
        spec.learning_rate,
        lambda step: start + (1 - start) * factor(step) if step < spec.warmup_iters else factor(step),
    )


def _factor(config: Config, spec: Schedule, iterations: int) -> Factor:
    rate, warmup = spec.learning_rate, spec.warmup_iters
    match spec:
        case Polynomial():
            length = iterations if spec.decay_steps is None else warmup + spec.decay_steps
            return polynomial(length, power=spec.power, end=spec.end_lr / rate, warmup=warmup)
        case Cosine():
            length = iterations if spec.T_max is None else warmup + spec.T_max
            return cosine(length, end=spec.eta_min / rate, warmup=warmup)
        case Steps():
            if len(spec.values) != len(spec.boundaries) + 1:
                counts = f"{len(spec.values)} values, {len(spec.boundaries)} boundaries"
                raise config.fail(
                    "lr_scheduler", f"{counts}; PiecewiseDecay takes one value more than boundaries."
                )
            return warmed(piecewise(spec.boundaries, [value / rate for value in spec.values]), warmup)
        case Stairs():
            step, gamma = spec.step_size, spec.gamma
            return warmed(lambda iteration: gamma ** (iteration // step), warmup)


def export_transforms(config: Config) -> tuple[list[Mapping[str, Any]], tuple[Transform, ...]]:
    """Preprocessing at deployment: ``export.transforms``, else what validation does, as YAML and objects."""
    specs, where = (config.values.get("export") or {}).get("transforms"), "export"
    if specs is None:
        where = "val_dataset" if config.values.get("val_dataset") else "train_dataset"
        specs = config.values[where].get("transforms", [])
    try:
        return list(specs), tuple(transform_named(dict(spec)) for spec in specs)
    except ConfigError as error:
        raise config.fail(where, str(error)) from error
