"""Transforms of images with boxes: letterbox, expansion, crops by overlap, mosaic, mixup.

Where torchvision has the transform it is torchvision's (``transforms.v2``), drawn from the sample's own
generator, so that a resumed run sees the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from quantrim.errors import ConfigError
from quantrim.vision.data.geometry import ResizeByLong
from quantrim.vision.data.objects import Objects, joined
from quantrim.vision.data.sample import Channels, Probability, Sample, Scale, Size


def _through(transform: nn.Module, sample: Sample, generator: np.random.Generator) -> Sample:
    """A sample through a transform of torchvision's; boxes that it empties are dropped."""
    if sample.mask is not None:
        raise ConfigError("this transform moves boxes; with masks use RandomScaleAspect or RandomPaddingCrop.")
    image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
    objects = sample.objects or Objects.of([], [])
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(objects.boxes), format="XYXY", canvas_size=sample.image.shape[:2]
    )  # type: ignore[call-overload]
    labels = torch.arange(len(objects))  # which objects are left
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(generator.integers(2**62)))
        moved, found, left = transform(tv_tensors.Image(image), boxes, labels)
    kept = objects[left.numpy()]
    pixels = np.ascontiguousarray(moved.numpy().transpose(1, 2, 0))
    own = replace(kept, boxes=found.numpy().astype(np.float32).reshape(-1, 4)).cut(*pixels.shape[:2])
    return Sample(pixels, None, sample.steps, own)


@dataclass(frozen=True)
class RandomExpand:
    """With probability ``prob`` the image somewhere on a canvas up to ``ratio`` times as large (SSD)."""

    ratio: Scale = 4.0
    prob: Probability = 0.5
    fill_value: Channels = (123.675, 116.28, 103.53)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        transform = v2.RandomZoomOut(fill=list(self.fill_value), side_range=(1.0, self.ratio), p=self.prob)
        return _through(transform, sample, generator)


@dataclass(frozen=True)
class RandomIoUCrop:
    """A crop in which some object overlaps the crop by a random share at least, or no crop (SSD).

    Objects whose centre lies outside go; PaddleDetection calls this RandomCrop.

    Attributes:
        scaling: smallest and largest side of the crop, as shares of the image's.
        aspect_ratio: smallest and largest width over height.
        num_attempts: tries for each share.
    """

    scaling: tuple[Probability, Probability] = (0.3, 1.0)
    aspect_ratio: tuple[Scale, Scale] = (0.5, 2.0)
    num_attempts: Annotated[int, Field(ge=1)] = 40

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if not sample.objects:
            return sample
        crop = v2.RandomIoUCrop(*self.scaling, *self.aspect_ratio, trials=self.num_attempts)
        tidy = v2.SanitizeBoundingBoxes(labels_getter=lambda inputs: inputs[2])
        return _through(v2.Compose([crop, tidy]), sample, generator)


@dataclass(frozen=True)
class Mosaic:
    """With probability ``prob`` four images around a random point (Bochkovskiy et al., arXiv 2004.10934).

    Attributes:
        target_size: width and height of the canvas.
        prob: else the image stays alone.
        scale: each image's longer side as a share of the canvas's.
    """

    target_size: Size = (416, 416)
    prob: Probability = 1.0
    scale: tuple[Scale, Scale] = (0.4, 1.0)
    im_padding_value: Channels = (114, 114, 114)
    partners: int = 3

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """A single image has nothing to be joined with."""
        return sample

    def join(self, sample: Sample, others: Sequence[Sample], generator: np.random.Generator) -> Sample:
        """Images to the left above, right above, left below and right below of the point."""
        if generator.random() >= self.prob:
            return sample
        width, height = self.target_size
        canvas = np.empty((height, width, sample.image.shape[2]), np.float32)
        canvas[:] = np.asarray(self.im_padding_value, np.float32)[: canvas.shape[2]]
        x, y = (int(generator.uniform(0.3, 0.7) * side) for side in (width, height))
        parts = []
        for place, one in enumerate((sample, *others)):
            one = ResizeByLong(max(2, int(generator.uniform(*self.scale) * max(width, height))))(one, generator)
            rows, columns = one.image.shape[:2]
            left, top = (x - columns, x)[place % 2], (y - rows, y)[place // 2]
            _put(canvas, one.image, left, top)
            parts.append((one.objects or Objects.of([], [])).moved(offset=(left, top)).cut(height, width))
        return Sample(canvas, None, (), joined(parts))


def _put(canvas: np.ndarray, image: np.ndarray, left: int, top: int) -> None:
    """Copy what of the image lies on the canvas."""
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(canvas.shape[0], top + image.shape[0]), min(canvas.shape[1], left + image.shape[1])
    canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]


@dataclass(frozen=True)
class MixUp:
    """With probability ``prob`` two images laid over each other (Zhang et al., arXiv 1902.04103).

    The share of the first is drawn from Beta(alpha, beta); objects weigh as much in the loss as their image.
    """

    alpha: Scale = 1.5
    beta: Scale = 1.5
    prob: Probability = 0.5
    partners: int = 1

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """A single image has nothing to be joined with."""
        return sample

    def join(self, sample: Sample, others: Sequence[Sample], generator: np.random.Generator) -> Sample:
        """The blend, of the size that holds both."""
        if generator.random() >= self.prob:
            return sample
        share, (other,) = float(generator.beta(self.alpha, self.beta)), others
        height = max(sample.image.shape[0], other.image.shape[0])
        width = max(sample.image.shape[1], other.image.shape[1])
        canvas = np.zeros((height, width, sample.image.shape[2]), np.float32)
        parts = []
        for one, weight in ((sample, share), (other, 1 - share)):
            canvas[: one.image.shape[0], : one.image.shape[1]] += np.float32(weight) * one.image
            objects = one.objects or Objects.of([], [])
            parts.append(replace(objects, weights=objects.weights * np.float32(weight)))
        return Sample(canvas, None, (), joined(parts))


def at_size(image: torch.Tensor, rows: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (C, H, W) as a square of that side, and its rows of objects (M, 6) with it; no aspect kept."""
    height, width = image.shape[1:]
    pixels = cv2.resize(image.numpy().transpose(1, 2, 0), (side, side), interpolation=cv2.INTER_LINEAR)
    scale = torch.tensor([1, side / width, side / height, side / width, side / height, 1])
    return torch.from_numpy(
        np.ascontiguousarray(pixels.reshape(side, side, -1).transpose(2, 0, 1))
    ), rows * scale
