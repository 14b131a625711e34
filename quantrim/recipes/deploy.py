"""``deploy.yaml`` goes with every file that is made of a model, so that it is found with its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from quantrim.errors import ConfigError
from quantrim.files import write_text

#: Keys of ``deploy.yaml`` that name the model's own files ("params" is PaddleSeg's).
_FILES = ("model", "params")


def deploy_of(model: Path, deploy: Path | None) -> Path | None:
    """The file that was named, else the one beside a model (for a Paddle model's folder: in it)."""
    if deploy is not None:
        return deploy
    beside = (model if model.is_dir() else model.parent) / "deploy.yaml"
    return beside if beside.is_file() else None


def carry_deploy(model: Path, deploy: Path | None, output: Path) -> Path | None:
    """Write a ``deploy.yaml`` beside a file made of a model, so that it is found with its preprocessing.

    Args:
        model: the model; where ``deploy`` is None, the deploy.yaml beside it is carried.
        deploy: or this file.
        output: the file that was made of the model; its name becomes ``Deploy.model``.

    Returns:
        The deploy.yaml beside ``output`` that holds for it: written, or found there saying the same (in the
        model's own folder). None where there is none to carry, or one of another model stands in its place.

    Raises:
        ConfigError: the deploy.yaml to carry can't be read.
        QuantrimError: the new one can't be written.
    """
    source = deploy_of(model, deploy)
    if source is None:
        return None
    given, place = _deploy_section(source), output.with_name("deploy.yaml")
    if place.exists():
        try:
            found = _deploy_section(place)
        except ConfigError:  # no deploy.yaml of ours: what it is to somebody else stays as it is
            return None
        if _without_files(found) == _without_files(given):
            return place
        if found.get("model") != output.name:
            return None
    content = {"Deploy": {"model": output.name, **_without_files(given)}}
    write_text(place, yaml.safe_dump(content, sort_keys=False))
    return place


def carried(model: Path, deploy: Path | None, output: Path) -> str:
    """:func:`carry_deploy`, and one sentence that says what became of it; "" where there is none to carry."""
    source, place = deploy_of(model, deploy), carry_deploy(model, deploy, output)
    if place is not None:
        return f"{place}: how images for {output.name} are prepared."
    if source is None:
        return ""
    return (
        f"{output.with_name('deploy.yaml')} is another model's and was left as it is; "
        f"the images of {output.name} are prepared as {source} says."
    )


def _deploy_section(path: Path) -> Mapping[str, Any]:
    try:
        section = yaml.safe_load(path.read_text(encoding="utf-8"))["Deploy"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no deploy.yaml with a section Deploy ({error}).") from error
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: Deploy is a {type(section).__name__}; it must be a mapping.")
    return section


def _without_files(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in _FILES}
