"""Options of the verbs that feed images to a file: where the images come from, and how they are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from quantrim.cli.options import parse_floats
from quantrim.errors import ConfigError
from quantrim.recipes.deploy import deploy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from quantrim.graph.feeds import ImagePreprocess

#: Suffixes of a configuration.
_CONFIGS = (".yml", ".yaml")
#: Suffixes of ready arrays, which nothing prepares.
_ARRAYS = (".npy", ".npz")
DeployOption = Annotated[
    Path | None,
    typer.Option(help="deploy.yaml that says how images are prepared; by default the one beside MODEL."),
]
MeanOption = Annotated[str | None, typer.Option(help="Or: mean per channel; ImageNet's by default.")]
StdOption = Annotated[str | None, typer.Option(help="Std per channel; ImageNet's by default.")]
FitOption = Annotated[str | None, typer.Option(help="crop (default) or stretch.")]


ImageFileOption = Annotated[
    Path | None,
    typer.Option(help="Also write this .onnx: uint8 image (N, H, W, C) in, mean and std inside, classes out."),
]


def image_file_told(model: Path, output: Path, prepared: Path | ImagePreprocess) -> str:
    """Write the file of ``--image-file``, and one sentence that says what it takes."""
    from quantrim.recipes.image_file import write_image_file

    shape = "x".join("any" if size == 0 else str(size) for size in write_image_file(model, output, prepared))
    return f"{output}: the same for uint8 images {shape}, with mean and std inside."


def is_config(data: Path) -> bool:
    """Whether ``--data`` names a YAML configuration."""
    return data.suffix in _CONFIGS


def samples_of(data: Path, count: int, seed: int | None = None) -> Any:
    """What ``--data`` names: the path itself, or the training images of a configuration.

    Args:
        data: image folder, list file, .npy or .npz, or a YAML configuration.
        count: images to take of a configuration's set.
        seed: draw them at random instead of spreading them over the set.
    """
    if data is None or not is_config(data):
        return data
    from quantrim.recipes.calibration import calibration_pairs
    from quantrim.vision.config import load_config

    return (image for image, _ in calibration_pairs(load_config(data), count, seed))


def judging_samples(data: Path | None, judge_data: Path | None, count: int) -> Any:
    """Data to judge on: those that were named, else the validation images of a configuration; None for neither.

    Args:
        data: what ``--data`` names; None where shards were given.
        judge_data: what ``--judge-data`` names.
        count: images to take of a configuration's set.
    """
    if judge_data is not None:
        return samples_of(judge_data, count)
    if data is None or not is_config(data):
        return None
    from quantrim.recipes.calibration import validation_images
    from quantrim.vision.config import load_config

    return validation_images(load_config(data), count)


def preprocess_of(
    models: Sequence[Path], deploy: Path | None, mean: str | None, std: str | None, fit: str | None
) -> ImagePreprocess | Callable[[Path], np.ndarray]:
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
    from quantrim.graph.feeds import ImagePreprocess

    deploy = chosen_deploy(models, deploy, mean, std, fit)
    if deploy is not None:
        from quantrim.recipes.calibration import deployed_decoder

        return deployed_decoder(deploy)
    if fit not in (None, "crop", "stretch"):
        raise ConfigError(f"--fit {fit!r}; legal: crop, stretch.")
    usual = ImagePreprocess()
    return ImagePreprocess(
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
    return None if asked else next(filter(None, (deploy_of(model, deploy) for model in models)), None)


def is_detector_file(deploy: Path | None) -> bool:
    """Whether ``deploy.yaml`` says that the model is a detector."""
    from quantrim.recipes.deployment import read_deployment

    return deploy is not None and read_deployment(deploy).task == "detection"


def prepared_by(
    data: Path, deploy: Path | None, preprocess: ImagePreprocess | Callable[[Path], np.ndarray]
) -> str:
    """One sentence that says how the calibration data were prepared.

    Args:
        data: what ``--data`` names; None where shards were given.
        deploy: result of :func:`chosen_deploy`.
        preprocess: result of :func:`preprocess_of`.
    """
    from quantrim.graph.feeds import IMAGENET, ImagePreprocess

    if data.suffix in _ARRAYS:
        return f"Arrays of {data} were taken as they are."
    if is_config(data) or not isinstance(preprocess, ImagePreprocess):
        return f"Images were prepared as {data if is_config(data) else deploy} says."
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    whose = "ImageNet's default" if preprocess == IMAGENET else "as given"
    return f"Images were prepared with mean {mean}, std {std}, {preprocess.fit} ({whose})."


def parse_channels(text: str, option: str) -> tuple[float, ...]:
    """Numbers for 1 or 3 channels, each std above 0; ConfigError otherwise."""
    values = parse_floats(text, option)
    if len(values) not in (1, 3):
        raise ConfigError(f"{option} {text!r} has {len(values)} numbers; give one, or one each for R, G and B.")
    if option == "--std" and min(values) <= 0:
        raise ConfigError(f"{option} {text!r}: every value must be above 0.")
    return values * 3 if len(values) == 1 else values
