"""Images for calibration and for measuring sensitivity: of the training set, prepared as in deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from quantrim.images import read_image
from quantrim.recipes.deployment import load_transforms
from quantrim.vision.config import Config, build_data


def calibration_pairs(config: Config, samples: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images and labels, without augmentation, spread evenly over the set or drawn from it.

    Args:
        config: with a training set; images get the transforms of its validation set where it has one.
        samples: at most so many.
        seed: draw them at random.

    Yields:
        Float32 (C, H, W) and the label.
    """
    data = build_data(config, "train_dataset")
    if config.spec.val_dataset is not None:
        data = replace(data, transforms=tuple(one.transform for one in config.spec.val_dataset.transforms))
    for index in chosen_indices(len(data), samples, seed):
        yield data[index]


def chosen_indices(length: int, samples: int, seed: int | None = None) -> list[int]:
    """Which samples of a set calibrate: ascending, spread evenly over it, or drawn at random by a seed."""
    count = min(samples, length)
    if seed is None:
        return [number * length // count for number in range(count)]
    return sorted(np.random.default_rng(seed).choice(length, count, replace=False).tolist())


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
