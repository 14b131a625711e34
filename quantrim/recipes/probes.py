"""What pruning measures on: training images, and what a model loses on each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantrim.errors import ConfigError
from quantrim.pruning.sensitivity.criteria import Examples
from quantrim.pruning.sensitivity.probe import Probe, cross_entropy, error_rate, iou_loss, mean_cross_entropy
from quantrim.recipes.calibration import calibration_pairs
from quantrim.recipes.judging import detection_test
from quantrim.vision.config import Config, build_loss
from quantrim.vision.detection.evaluate import precision_loss
from quantrim.vision.models.detection import is_detector

#: Losses that widths can be chosen by: of classes, and the words that are legal for a detector.
METRICS = {"loss": cross_entropy, "error": error_rate, "iou": iou_loss}
_OF_BOXES = ("loss", "ap")
LEGAL_METRICS = (*METRICS, "ap")
#: Pixels of all samples together that are measured on by default, and least and most samples.
_PIXELS, _LEAST, _MOST = 32 * 512 * 512, 32, 1024
#: Pixels of a batch, so that what lies before a group fits into memory; least and most samples of one.
_PIXELS_OF_BATCH, _LEAST_OF_BATCH, _MOST_OF_BATCH = 2**20, 4, 128


def probe_of(
    config: Config, samples: int | None = None, metric: str = "loss", model: nn.Module | None = None
) -> Probe:
    """Training images in batches of equal shape, for losses and statistics.

    Args:
        config: with a training set.
        samples: number of images; None for as many as have the pixels of 32 images of 512x512, from 32 to 1024.
        metric: one of METRICS; of a detector "loss" or "ap".
        model: the detector whose maps are judged; None for other tasks.

    Raises:
        ConfigError: the metric is of another task.
    """
    losses = _losses(config, metric, model)
    first, _ = next(calibration_pairs(config, 1))
    pixels = first.shape[-1] * first.shape[-2]
    wanted = samples or min(_MOST, max(_LEAST, _PIXELS // pixels))
    pairs = list(calibration_pairs(config, wanted))
    size = min(_MOST_OF_BATCH, max(_LEAST_OF_BATCH, _PIXELS_OF_BATCH // pixels), len(pairs))
    if len({image.shape for image, _ in pairs}) > 1:
        size = 1
    bundles = [pairs[start : start + size] for start in range(0, len(pairs) - len(pairs) % size, size)]
    batches = (tuple(torch.stack(parts) for parts in zip(*bundle, strict=True)) for bundle in bundles)
    return Probe(tuple((images, labels) for images, labels in batches), losses)


def _losses(config: Config, metric: str, model: nn.Module | None) -> Callable[[Any, Tensor], Tensor]:
    """What a model loses on each sample of a batch, by a word of the recipe."""
    decoder = model.decoder if model is not None and is_detector(model) else None
    legal: tuple[str, ...] = tuple(METRICS) if decoder is None else _OF_BOXES
    if metric not in legal:
        kind = "a model of classes" if decoder is None else "a detector"
        raise ConfigError(
            f"metric {metric!r} does not judge {kind}; legal: {', '.join(legal)}.", field="metric"
        )
    if decoder is None:
        return METRICS[metric]
    if metric == "ap":
        return partial(precision_loss, decoder=decoder, thresholds=detection_test(config).thresholds)
    return build_loss(config, 255, model)


def examples_of(config: Config, probe: Probe, model: nn.Module) -> Examples:
    """The probe's batches with a loss that has gradients, for criteria that need them."""
    boxes = is_detector(model)
    loss = partial(_mean_loss, build_loss(config, 255, model)) if boxes else mean_cross_entropy
    return Examples(probe.batches, loss)


def _mean_loss(
    loss: Callable[[Any, Tensor], Tensor], module: nn.Module, batch: tuple[Tensor, Tensor]
) -> Tensor:
    images, labels = batch
    return loss(module(images), labels).mean()
