"""What each engine runs in INT8, one file of data an engine."""

from dataclasses import fields
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


def differences(target: Target) -> list[str]:
    """How a target differs from the one that quantrim brings for the same engines, a line a field."""
    known = next((one for one in TARGETS.values() if set(one.engines) == set(target.engines)), None)
    if known is None:
        return []
    found = []
    for name in (field.name for field in fields(known)):
        mine, theirs = getattr(target, name), getattr(known, name)
        if name in ("name", "engines", "notes") or mine == theirs:
            continue
        if isinstance(mine, frozenset):
            more, less = ", ".join(sorted(mine - theirs)), ", ".join(sorted(theirs - mine))
            said = "; ".join(filter(None, (more and f"also {more}", less and f"not {less}")))
        else:
            said = f"{mine} instead of {theirs}"
        found.append(f"unlike target {known.name}: {name}: {said}")
    return found


__all__ = [
    "ONNXRUNTIME",
    "OPENVINO",
    "PORTABLE",
    "TARGETS",
    "TENSORRT",
    "Target",
    "differences",
    "load_target",
    "save_target",
    "target_named",
]
