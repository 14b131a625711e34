"""A configuration and weights made real: float, pruned or quantized, without the data where nobody asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantrim.checkpoints import read_state, require_numbers
from quantrim.errors import CheckpointError, ConfigError, DataError, did_you_mean
from quantrim.files import write_json
from quantrim.pruning.plan import load_trained
from quantrim.qat import QAT, QATConfig
from quantrim.recipes.fetch import local_file
from quantrim.vision.config import Config, build_data, build_model, data_facts, export_transforms
from quantrim.vision.data.build import Facts
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.data.sample import Sample, apply
from quantrim.vision.schema import ImageFolder

#: Beside quantized weights: how the module was quantized.
QUANTIZATION_FILE = "quantization.json"
_QUANTIZED = "quantrim."


@dataclass(frozen=True)
class Loaded:
    """A configuration made real.

    Attributes:
        config: the configuration.
        model: with its weights, in eval mode.
        opened: the data set, where it is open already.
        qat: the model under quantization, where the weights are quantized ones.
    """

    config: Config
    model: nn.Module
    opened: VisionData | None = None
    qat: QAT | None = None

    @cached_property
    def data(self) -> VisionData:
        """Validation set, or the training set where there is none; opened when asked for."""
        return self.opened or build_data(self.config, self.config.judged)

    @cached_property
    def facts(self) -> Facts:
        """Task and classes; the data are opened only where nothing else tells."""
        found = data_facts(self.config)
        if (
            self.opened is None
            and found.num_classes is not None
            and (found.names or not _in_folders(self.config))
        ):
            return found
        try:
            return replace(
                found, task=self.data.task, num_classes=self.data.num_classes, names=self.data.class_names
            )
        except DataError:
            if found.num_classes is None:
                raise
            return found


def load(config: Config, weights: str | Path | None, device: str = "cpu") -> Loaded:
    """Model with weights: pruned or quantized where they are a pruned or a quantized model's.

    Args:
        config: the configuration; its data need not be on this disk.
        weights: file or address; None for fresh weights, or those of the model's ``pretrained``.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: a wrong section of the model, or an illegal device.
        CheckpointError: the weights are missing, damaged, or of another model.
    """
    place, bare = device_named(device), Loaded(config, nn.Identity())
    model = build_model(config, bare.facts.num_classes or 0).eval()
    found = replace(bare, model=model)
    if weights is None:
        model.to(place)
        return found
    path = local_file(weights)
    if (path.parent / QUANTIZATION_FILE).is_file():
        made = _quantized(model, path)
        made.module.eval().to(place)
        return replace(found, qat=made)
    load_trained(model, path)
    require_numbers(model, weights)
    model.eval().to(place)
    return found


def load_float(config: Config, weights: str | Path | None) -> Loaded:
    """:func:`load` of weights to train, which are no quantized ones."""
    loaded = load(config, weights)
    if loaded.qat is not None:
        raise CheckpointError(f"{weights}: quantized weights; start from float ones, or resume their run.")
    return loaded


def without_quantizers(loaded: Loaded) -> Loaded:
    """The float model that a quantized run has trained; any other as it is."""
    return loaded if loaded.qat is None else replace(loaded, model=loaded.qat.remove(), qat=None)


def _in_folders(config: Config) -> bool:
    """Whether classes are named by folders."""
    return isinstance(config.spec.val_dataset or config.spec.train_dataset, ImageFolder)


def device_named(word: str) -> torch.device:
    """The device of a word.

    Raises:
        ConfigError: an unknown word, or no GPU.
    """
    if word not in ("auto", "cpu", "cuda", "gpu"):
        raise ConfigError(f"device {word!r}{did_you_mean(word, ('auto', 'cpu', 'cuda'))}", field="device")
    found = torch.cuda.is_available()
    if word in ("cuda", "gpu") and not found:
        raise ConfigError(f"device {word!r}: torch finds no GPU here. Use device auto or cpu.", field="device")
    return torch.device("cuda" if found and word != "cpu" else "cpu")


def example_of(config: Config, facts: Facts, shape: tuple[int, ...] | None = None) -> Tensor:
    """Random images as the model sees them, float32 (1, C, H, W), from no data set.

    Args:
        config: its transforms of deployment give the size.
        facts: size of the images before them.
        shape: this shape instead.
    """
    generator = torch.Generator().manual_seed(0)
    if shape is None:
        _, transforms = export_transforms(config)
        blank = Sample(np.zeros(facts.shape, np.float32))
        height, width, channels = apply(transforms, blank, np.random.default_rng(0)).image.shape
        shape = (1, channels, height, width)
    return torch.randn(shape, generator=generator)


def write_quantization(folder: Path, made: QAT) -> None:
    """Note beside weights how their module was quantized, so that they can be loaded again.

    The shape of the inputs that it was traced with is among that: which calls there are may depend on it.
    """
    config = made.config
    values = asdict(config)
    for name in ("skip", "op_types"):
        values[name] = None if values[name] is None else sorted(values[name])
    plain = {name: value for name, value in values.items() if name not in ("skip_types",)}
    shape = list(made.example[0][0].shape)
    write_json(folder / QUANTIZATION_FILE, {"target": made.target.name, "config": plain, "input_shape": shape})


def read_quantization(path: Path) -> tuple[str, QATConfig, tuple[int, ...]]:
    """Target, settings and shape of the inputs from a :data:`QUANTIZATION_FILE`.

    Raises:
        CheckpointError: the file is damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        target, values = content["target"], dict(content["config"])
        values["skip"] = tuple(values["skip"])
        values["op_types"] = None if values["op_types"] is None else frozenset(values["op_types"])
        known = {entry.name for entry in fields(QATConfig)}
        config = QATConfig(**{name: value for name, value in values.items() if name in known})
        return str(target), config, tuple(int(size) for size in content["input_shape"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path}: no settings of a quantized model ({error}).") from error


def _quantized(model: nn.Module, path: Path) -> QAT:
    settings = path.parent / QUANTIZATION_FILE
    target, config, shape = read_quantization(settings)
    # the warm-up is over: what is loaded computes with its quantizers
    made = QAT(model, torch.zeros(shape), target=target, config=replace(config, warm_up=0))
    state: Mapping[str, Any] = read_state(path)
    if not any(name.startswith(_QUANTIZED) for name in state):
        raise CheckpointError(
            f"{path}: float weights, though {settings.name} lies beside them. Remove that file."
        )
    made.load_state_dict(state)
    return made
