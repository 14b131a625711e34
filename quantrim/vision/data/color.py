"""Transforms that change values and leave every pixel where it is, under PaddleSeg's names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from quantrim.vision.data.sample import Channels, Extent, Probability, Sample


@dataclass(frozen=True)
class Normalize:
    """(x / 255 - mean) / std."""

    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or 0 in self.std:
            raise ValueError(f"mean {list(self.mean)} and std {list(self.std)}: give one std, not 0, a mean.")

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
        return replace(sample, image=(sample.image / np.float32(255) - mean) / std)


@dataclass(frozen=True)
class RandomBlur:
    """Gaussian blur with probability ``prob`` and a random odd kernel of at most 9 pixels."""

    prob: Probability = 0.1

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        radius = int(generator.choice([3, 5, 7, 9]))
        return replace(sample, image=cv2.GaussianBlur(sample.image, (radius, radius), 0, sigmaY=0))


@dataclass(frozen=True)
class RandomNoise:
    """Gaussian noise of at most ``max_sigma`` grey levels with probability ``prob``."""

    prob: Probability = 0.5
    max_sigma: Extent = 10.0

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        noise = generator.standard_normal(sample.image.shape, dtype=np.float32)
        sigma = np.float32(generator.uniform(0, self.max_sigma))
        return replace(sample, image=np.clip(sample.image + sigma * noise, 0, 255))


@dataclass(frozen=True)
class RandomDistort:
    """Random brightness, contrast, saturation and hue, each within its range and with its probability.

    Attributes:
        brightness_range: the factor is drawn from 1 - range to 1 + range; likewise contrast and saturation.
        hue_range: largest turn of the hue, degrees.
    """

    brightness_range: Extent = 0.5
    brightness_prob: Probability = 0.5
    contrast_range: Extent = 0.5
    contrast_prob: Probability = 0.5
    saturation_range: Extent = 0.5
    saturation_prob: Probability = 0.5
    hue_range: Extent = 18.0
    hue_prob: Probability = 0.5

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        image = sample.image
        if generator.random() < self.brightness_prob:
            image = image * _factor(self.brightness_range, generator)
        if generator.random() < self.contrast_prob:
            image = _blend(image, image.mean(), _factor(self.contrast_range, generator))
        if image.shape[2] != 3:  # a grey picture has neither saturation nor hue
            return replace(sample, image=np.clip(image, 0, 255).astype(np.float32))
        if generator.random() < self.saturation_prob:
            grey = (image @ _LUMA)[:, :, None]
            image = _blend(image, grey, _factor(self.saturation_range, generator))
        if generator.random() < self.hue_prob:
            image = _turned(np.clip(image, 0, 255), generator.uniform(-self.hue_range, self.hue_range))
        return replace(sample, image=np.clip(image, 0, 255).astype(np.float32))


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _factor(extent: float, generator: np.random.Generator) -> np.float32:
    return np.float32(generator.uniform(1 - extent, 1 + extent))


def _blend(image: np.ndarray, base: np.ndarray | np.floating, factor: np.float32) -> np.ndarray:
    return (image - base) * factor + base


def _turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """The picture with its hue turned; OpenCV's float32 hue is in 0..360."""
    colors = cv2.cvtColor(np.ascontiguousarray(image, np.float32), cv2.COLOR_RGB2HSV)
    colors[:, :, 0] = (colors[:, :, 0] + np.float32(degrees)) % 360
    return cv2.cvtColor(colors, cv2.COLOR_HSV2RGB)
