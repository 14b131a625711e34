"""PaddleDetection's training configurations in quantrim's words.

Of release 0.5's keys these are read: ``max_iters``, ``LearningRate`` with its schedulers,
``OptimizerBuilder``, ``num_classes``, ``metric``, ``map_type``, data sets and batch size of the readers. Model
and transforms are those of the configuration that is changed, for PaddleDetection builds them from code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from quantrim.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML whose tags, such as ``!PiecewiseDecay``, become the key ``type``."""


def _tagged(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    values: dict[Any, Any] = {}
    if isinstance(node, yaml.MappingNode):
        values = loader.construct_mapping(node, deep=True)
    return {"type": suffix, **values}


_Loader.add_multi_constructor("!", _tagged)


def detection_overrides(path: str | Path, changes: Sequence[str] = (), *, gpus: int = 8) -> list[str]:
    """A configuration of PaddleDetection as ``key=value`` overrides of one of quantrim's.

    Args:
        path: the .yml file.
        changes: what follows ``-o`` of PaddleDetection's train.py, such as ``max_iters=30000`` or
            ``LearningRate.schedulers="[!PiecewiseDecay {gamma: 0.1, milestones: [10000]}]"``.
        gpus: devices that its batch size is meant for, one process here.

    Returns:
        Overrides for :func:`quantrim.vision.config.load_config`.

    Raises:
        ConfigError: the file can't be read, or a scheduler is unknown.
    """
    values = _read(path)
    for text in changes:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"{text!r} is not of the form key=value.")
        place = values
        *outer, last = key.split(".")
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = yaml.load(value, _Loader)
    made: dict[str, Any] = {}
    if "max_iters" in values:
        made["iters"] = int(values["max_iters"])
    if "LearningRate" in values:
        made["lr_scheduler"] = _schedule(values["LearningRate"], path)
    made |= _optimizer(values.get("OptimizerBuilder") or {})
    reader = values.get("TrainReader") or {}
    if "batch_size" in reader:
        made["batch_size"] = int(reader["batch_size"]) * gpus
    for key, part in (("train_dataset", "TrainReader"), ("val_dataset", "EvalReader")):
        for name, value in _data(values.get(part) or {}).items():
            made[f"{key}.{name}"] = value
    if "num_classes" in values:
        made["model.num_classes"] = int(values["num_classes"])
    for name in ("metric", "map_type"):
        if name in values:
            made[f"test_config.{name}"] = values[name]
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}"
            for key, value in made.items()]  # fmt: skip


def _read(path: str | Path) -> dict[str, Any]:
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: no readable YAML file ({' '.join(str(error).split())}).") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: a configuration is a YAML mapping, this is a {type(found).__name__}.")
    return found


def _schedule(rate: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    base = float(rate["base_lr"])
    made: dict[str, Any] = {"type": "PiecewiseDecay", "learning_rate": base, "values": [base], "boundaries": []}
    for one in rate.get("schedulers") or ():
        kind = str(one.get("type"))
        if kind == "PiecewiseDecay":
            steps = [int(step) for step in one["milestones"]]
            gamma = float(one.get("gamma", 0.1))
            made["boundaries"] = steps
            made["values"] = [base * gamma**count for count in range(len(steps) + 1)]
        elif kind == "LinearWarmup":
            made["warmup_iters"] = int(one.get("steps", 500))
            made["warmup_start_lr"] = base * float(one.get("start_factor", 1 / 3))
        else:
            raise ConfigError(
                f"{path}: LearningRate.schedulers: {kind} is not read; legal: PiecewiseDecay, LinearWarmup."
            )
    return made


def _optimizer(spec: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    optimizer, regularizer = spec.get("optimizer") or {}, spec.get("regularizer") or {}
    if optimizer.get("type") == "Momentum":
        made["optimizer.type"] = "sgd"
        made["optimizer.momentum"] = float(optimizer.get("momentum", 0.9))
    if regularizer.get("type") == "L2":
        made["optimizer.weight_decay"] = float(regularizer["factor"])
    return made


def _data(reader: Mapping[str, Any]) -> dict[str, Any]:
    spec = reader.get("dataset") or {}
    made = {"type": spec["type"]} if spec.get("type") in ("VOCDataSet", "COCODataSet") else {}
    names = {"dataset_dir": "dataset_root", "anno_path": "anno_path", "image_dir": "image_dir"}
    return made | {ours: spec[theirs] for theirs, ours in names.items() if theirs in spec and made}
