"""Options of the verbs that feed images to a file: where the images come from, and how they are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
import yaml

from quantrim.cli.options import parse_floats
from quantrim.errors import ConfigError
from quantrim.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from quantrim.calibrate import Preprocess

#: Suffixes of a configuration.
_CONFIGS = (".yml", ".yaml")
#: Suffixes of ready arrays, which nothing prepares.
_ARRAYS = (".npy", ".npz")
#: Keys of ``deploy.yaml`` that name the model's own files ("params" is PaddleSeg's).
_FILES = ("model", "params")

DeployOption = Annotated[
    Path | None,
    typer.Option(help="deploy.yaml that says how images are prepared; by default the one beside MODEL."),
]
MeanOption = Annotated[str | None, typer.Option(help="Or: mean per channel; ImageNet's by default.")]
StdOption = Annotated[str | None, typer.Option(help="Std per channel; ImageNet's by default.")]
FitOption = Annotated[str | None, typer.Option(help="crop (default) or stretch.")]


def is_config(data: Path) -> bool:
    """Whether ``--data`` names a YAML configuration."""
    return data.suffix in _CONFIGS


def samples_of(data: Path, count: int) -> Any:
    """What ``--data`` names: the path itself, or the training pictures of a configuration.

    Args:
        data: image folder, list file, .npy or .npz, or a YAML configuration.
        count: pictures to take of a configuration's set.
    """
    if not is_config(data):
        return data
    from quantrim.vision.calibration import calibration_pairs
    from quantrim.vision.config import load_config

    return (image for image, _ in calibration_pairs(load_config(data), count))


def preprocess_of(
    models: Sequence[Path], deploy: Path | None, mean: str | None, std: str | None, fit: str | None
) -> Preprocess | Callable[[Path], np.ndarray]:
    """How image files become inputs: as ``deploy.yaml`` says, or by the options given.

    Args:
        models: the first of them that has a ``deploy.yaml`` beside it is asked.
        deploy: or this file.
        mean: text of ``--mean``, likewise the others.
        std: see mean.
        fit: see mean.

    Raises:
        ConfigError: both ways were asked for, or an option or the file holds an illegal value.
    """
    from quantrim.calibrate import Preprocess

    deploy = chosen_deploy(models, deploy, mean, std, fit)
    if deploy is not None:
        from quantrim.vision.calibration import deployed_decoder

        return deployed_decoder(deploy)
    if fit not in (None, "crop", "stretch"):
        raise ConfigError(f"--fit {fit!r}; legal: crop, stretch.")
    usual = Preprocess()
    return Preprocess(
        usual.mean if mean is None else parse_channels(mean, "--mean"),
        usual.std if std is None else parse_channels(std, "--std"),
        cast("Literal['crop', 'stretch']", fit or "crop"),
    )


def chosen_deploy(
    models: Sequence[Path], deploy: Path | None, mean: str | None, std: str | None, fit: str | None
) -> Path | None:
    """The ``deploy.yaml`` that prepares images; None where the other options do, or their defaults.

    Arguments and errors are those of :func:`preprocess_of`.
    """
    asked = mean is not None or std is not None or fit is not None
    if deploy is not None and asked:
        raise ConfigError("--deploy says how images are prepared; leave --mean, --std and --fit away.")
    return None if asked else next(filter(None, (_deploy_of(model, deploy) for model in models)), None)


def _deploy_of(model: Path, deploy: Path | None) -> Path | None:
    """The file that was named, else the one beside a model (for a Paddle model's folder: in it)."""
    if deploy is not None:
        return deploy
    beside = (model if model.is_dir() else model.parent) / "deploy.yaml"
    return beside if beside.is_file() else None


def prepared_by(data: Path, deploy: Path | None, preprocess: Preprocess | Callable[[Path], np.ndarray]) -> str:
    """One sentence that says how the calibration data were prepared.

    Args:
        data: what ``--data`` names.
        deploy: result of :func:`chosen_deploy`.
        preprocess: result of :func:`preprocess_of`.
    """
    from quantrim.calibrate import IMAGENET, Preprocess

    if data.suffix in _ARRAYS:
        return f"Arrays of {data} were taken as they are."
    if is_config(data) or not isinstance(preprocess, Preprocess):
        return f"Images were prepared as {data if is_config(data) else deploy} says."
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    whose = "ImageNet's default" if preprocess == IMAGENET else "as given"
    return f"Images were prepared with mean {mean}, std {std}, {preprocess.fit} ({whose})."


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
    source = _deploy_of(model, deploy)
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
    source, place = _deploy_of(model, deploy), carry_deploy(model, deploy, output)
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


def parse_channels(text: str, option: str) -> tuple[float, ...]:
    """Numbers for 1 or 3 channels, each std above 0; ConfigError otherwise."""
    values = parse_floats(text, option)
    if len(values) not in (1, 3):
        raise ConfigError(f"{option} {text!r} has {len(values)} numbers; give one, or one each for R, G and B.")
    if option == "--std" and min(values) <= 0:
        raise ConfigError(f"{option} {text!r}: every value must be above 0.")
    return values * 3 if len(values) == 1 else values
