"""A target in a JSON file: what ``quantrim target learn`` writes, and a user may write by hand."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from quantrim.files import read_json, validated, write_json
from quantrim.targets.base import Target

_Op = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$", max_length=60)]


class _Stored(BaseModel):
    """The file's content; its fields are those of :class:`Target`."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[\w.+-]+$", max_length=100)]
    engines: list[Literal["openvino", "onnxruntime", "tensorrt"]]
    activation: Literal["u8", "s8"]
    compute: list[_Op]
    join: list[_Op]
    follow: list[_Op]
    carry: list[_Op]
    fuse: list[_Op]
    shared_scale: list[_Op]
    needs_output: list[_Op]
    carries_codes: bool
    residual: Literal["both", "identity"]
    bias: Literal["int32", "float"]
    int8_matmul: bool
    notes: dict[str, str]
    misread: list[_Op] = []


def save_target(target: Target, path: str | Path) -> None:
    """Write a target as JSON; sets become sorted lists."""
    value = asdict(target)
    sets = {name: sorted(items) for name, items in value.items() if isinstance(items, frozenset)}
    write_json(path, value | sets | {"engines": list(target.engines)})


def load_target(path: str | Path) -> Target:
    """Read a target that :func:`save_target` wrote.

    Raises:
        DataError: the file is missing, or no JSON.
        CheckpointError: a field is missing, unknown or of another type.
    """
    path = Path(path)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _loaded(path, changed)


@lru_cache(maxsize=8)
def _loaded(path: Path, changed: int) -> Target:
    """The target in a file that last changed then; rules are asked for often."""
    stored = validated(_Stored, read_json(path), path, "Learn the target again.")
    found: dict[str, Any] = stored.model_dump()
    kinds = {field.name: str(field.type) for field in fields(Target)}
    sets = {name: frozenset(items) for name, items in found.items() if kinds[name] == "frozenset[str]"}
    return Target(**(found | sets | {"engines": tuple(stored.engines)}))
