"""What each engine runs in INT8, one file of data an engine."""

from pathlib import Path

from quantrim.errors import ConfigError, did_you_mean
from quantrim.targets.base import Target
from quantrim.targets.onnxruntime import ONNXRUNTIME
from quantrim.targets.openvino import OPENVINO
from quantrim.targets.portable import PORTABLE
from quantrim.targets.stored import load_target, save_target
from quantrim.targets.tensorrt import TENSORRT

TARGETS = {target.name: target for target in (PORTABLE, OPENVINO, ONNXRUNTIME, TENSORRT)}


def target_named(name: str) -> Target:
    """Target by the name a user types: one of the four, or the path of a .json file.

    Raises:
        ConfigError: no such target.
        DataError, CheckpointError: the file is missing or damaged.
    """
    if Path(name).suffix == ".json":
        return load_target(name)
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}{did_you_mean(name, TARGETS)}", field="target")
    return TARGETS[name]


__all__ = [
    "ONNXRUNTIME",
    "OPENVINO",
    "PORTABLE",
    "TARGETS",
    "TENSORRT",
    "Target",
    "load_target",
    "save_target",
    "target_named",
]
