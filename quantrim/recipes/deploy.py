"""``deploy.yaml`` goes with every file that is made of a model, so that it is found with its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from quantrim.detection import decoder_from
from quantrim.errors import ConfigError
from quantrim.files import write_text
from quantrim.judges import Judging
from quantrim.judges.bars import level_named, task_named

#: Keys of ``deploy.yaml`` that hold for the model's own files alone ("params" is PaddleSeg's).
_FILES = ("model", "params", "precision")


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
    section = {"model": output.name, **_without_files(given)} | precision_entry(output)
    write_text(place, yaml.safe_dump({"Deploy": section}, sort_keys=False))
    return place


def precision_entry(model: Path) -> dict[str, str]:
    """What ``deploy.yaml`` says of the precision that tuning found for a file; nothing where that is FP32."""
    from quantrim.rewrites.files import asked_precision  # loads an engine, which the command line doesn't need

    asked = asked_precision(model)
    return {} if asked == "f32" else {"precision": asked}


def note_precision(model: Path) -> None:
    """Let a file's own ``deploy.yaml`` say in which precision the file was fastest."""
    place = model.with_name("deploy.yaml")
    section = _section_of(place if place.is_file() else None)
    if section.get("model") != model.name:
        return
    noted = {key: value for key, value in section.items() if key != "precision"} | precision_entry(model)
    if noted != section:
        write_text(place, yaml.safe_dump({"Deploy": noted}, sort_keys=False))


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


def judging_from(
    models: Sequence[Path], deploy: Path | None, *, task: str | None, decoder: str | None, accept: str
) -> Judging:
    """How a file is judged: as given, else as the ``Deploy`` section of a deploy.yaml says.

    Args:
        models: the first of them that has a deploy.yaml beside it is asked.
        deploy: or this file.
        task: word of a task; None to look for it.
        decoder: YAML mapping, or a file that holds one; None to look for it.
        accept: level that a file must reach.

    Raises:
        ConfigError: an unknown word, a decoder that can't be read, or one that does not fit.
    """
    level = level_named(accept)
    told = None if decoder is None else decoder_from(_mapping(decoder))
    if task is not None or told is not None:
        return Judging(None if task is None else task_named(task), told, level)
    source = next(filter(None, (deploy_of(model, deploy) for model in models)), None)
    section = _section_of(source)
    if "task" not in section and "decoder" not in section:
        return Judging(accept=level)
    found = decoder_from(section["decoder"]) if section.get("decoder") else None
    word = section.get("task")
    return Judging(task_named(str(word)) if word else None, found, level, source=f"as {source} says")


def _section_of(source: Path | None) -> Mapping[str, Any]:
    """Section ``Deploy``; nothing where a file of that name is somebody else's."""
    try:
        return {} if source is None else _deploy_section(source)
    except ConfigError:
        return {}


def _mapping(text: str) -> Mapping[str, Any]:
    """A YAML mapping, or that of a file."""
    try:
        value = yaml.safe_load(Path(text).read_text(encoding="utf-8") if Path(text).is_file() else text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"decoder {text!r}: no YAML ({error}).", field="decoder") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"decoder {text!r}: no file and no mapping such as {{type: yolox, num_classes: 80}}.",
            field="decoder",
        )
    return value.get("Deploy", value).get("decoder", value)


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
