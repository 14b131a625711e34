"""Pictures for calibration and for measuring sensitivity: of the training set, prepared as in deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from quantrim.images import read_image
from quantrim.recipes.deployment import load_transforms
from quantrim.vision.config import Config, build_data


def calibration_pairs(config: Config, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training pictures and labels, without augmentation, spread evenly over the set.

    Args:
        config: with a training set; pictures get the transforms of its validation set where it has one.
        samples: at most so many.

    Yields:
        Float32 (C, H, W) and the label.
    """
    data = build_data(config, "train_dataset")
    if config.spec.val_dataset is not None:
        data = replace(data, transforms=tuple(one.transform for one in config.spec.val_dataset.transforms))
    count = min(samples, len(data))
    for number in range(count):
        yield data[number * len(data) // count]


def validation_images(config: Config, count: int) -> list[Tensor] | None:
    """Images of the validation set, float32 (C, H, W), spread evenly over it; None where there is none.

    Args:
        config: with a validation set, or without.
        count: at most so many.
    """
    if config.spec.val_dataset is None:
        return None
    data = build_data(config, "val_dataset")
    count = min(count, len(data))
    return [data[number * len(data) // count][0] for number in range(count)] or None


def deployed_decoder(deploy: str | Path) -> Callable[[Path], np.ndarray]:
    """Function from image file to float32 (C, H, W), as ``deploy.yaml`` says.

    Raises:
        ConfigError: the file is missing or has no ``Deploy.transforms``.
    """
    prepare = load_transforms(deploy)
    return lambda path: prepare(read_image(path))
