"""Transforms that move pixels, under PaddleSeg's names: size, crop, flip, rotation, affine maps.

Masks go the same way by nearest neighbour; what comes from outside the picture gets the label to ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from quantrim.vision.data.sample import (
    Channels,
    Extent,
    Label,
    Probability,
    Sample,
    Scale,
    Side,
    Size,
    padded,
    resized,
)


@dataclass(frozen=True)
class Resize:
    """Resize to ``target_size`` (width, height), whatever the aspect."""

    target_size: Size = (512, 512)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        return resized(sample, *self.target_size)


@dataclass(frozen=True)
class ResizeByLong:
    """Resize so that the longer side is ``long_size``."""

    long_size: Side

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        ratio = self.long_size / max(height, width)
        return resized(sample, round(width * ratio), round(height * ratio))


@dataclass(frozen=True)
class ResizeByShort:
    """Resize so that the shorter side is ``short_size``."""

    short_size: Side

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        ratio = self.short_size / min(height, width)
        return resized(sample, round(width * ratio), round(height * ratio))


@dataclass(frozen=True)
class LimitLong:
    """Resize only if the longer side is above ``max_long`` or below ``min_long``."""

    max_long: Side | None = None
    min_long: Side | None = None

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        longer = max(sample.image.shape[:2])
        target = longer
        if self.max_long is not None:
            target = min(target, self.max_long)
        if self.min_long is not None:
            target = max(target, self.min_long)
        return sample if target == longer else ResizeByLong(target)(sample, generator)


@dataclass(frozen=True)
class ResizeStepScaling:
    """Scale by a random factor from ``min_scale_factor`` to ``max_scale_factor`` in steps."""

    min_scale_factor: Scale = 0.75
    max_scale_factor: Scale = 1.25
    scale_step_size: Extent = 0.25

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        low, high, step = self.min_scale_factor, self.max_scale_factor, self.scale_step_size
        scale = generator.uniform(low, high)
        if step > 0:
            scale = low + step * generator.integers(0, int(np.floor((high - low) / step + 1e-9)) + 1)
        height, width = sample.image.shape[:2]
        return resized(sample, round(width * scale), round(height * scale))


@dataclass(frozen=True)
class ResizeRangeScaling:
    """Resize the longer side to a random value in ``min_value``..``max_value``."""

    min_value: Side = 400
    max_value: Side = 600

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        return ResizeByLong(int(generator.integers(self.min_value, self.max_value + 1)))(sample, generator)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left and right with probability ``prob``."""

    prob: Probability = 0.5

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        mask = None if sample.mask is None else sample.mask[:, ::-1]
        objects = sample.objects and sample.objects.mirrored(sample.image.shape[1], axis=0)
        return replace(sample, image=sample.image[:, ::-1], mask=mask, objects=objects)


@dataclass(frozen=True)
class RandomVerticalFlip:
    """Mirror top and bottom with probability ``prob``."""

    prob: Probability = 0.1

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        mask = None if sample.mask is None else sample.mask[::-1]
        objects = sample.objects and sample.objects.mirrored(sample.image.shape[0], axis=1)
        return replace(sample, image=sample.image[::-1], mask=mask, objects=objects)


@dataclass(frozen=True)
class Padding:
    """Pad to ``target_size`` (width, height) on the right and below."""

    target_size: Size
    im_padding_value: Channels = (127.5, 127.5, 127.5)
    label_padding_value: Label = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        return padded(sample, *self.target_size, self.im_padding_value, self.label_padding_value)


@dataclass(frozen=True)
class RandomPaddingCrop:
    """Random crop of ``crop_size`` (width, height); smaller pictures are padded first."""

    crop_size: Size = (512, 512)
    im_padding_value: Channels = (127.5, 127.5, 127.5)
    label_padding_value: Label = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        width, height = self.crop_size
        sample = padded(sample, width, height, self.im_padding_value, self.label_padding_value)
        top = int(generator.integers(0, sample.image.shape[0] - height + 1))
        left = int(generator.integers(0, sample.image.shape[1] - width + 1))
        return _cropped(sample, (slice(top, top + height), slice(left, left + width)))


def _warped(sample: Sample, matrix: np.ndarray, size: Size, value: Sequence[float], label: int) -> Sample:
    """The affine map ``matrix`` (2, 3) onto a canvas of ``size``; ``label`` where no picture is."""
    image = cv2.warpAffine(sample.image, matrix, size, borderValue=tuple(value))
    mask = sample.mask
    if mask is not None:
        mask = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST, borderValue=label)
    objects = sample.objects and sample.objects.warped(matrix).cut(size[1], size[0])
    return Sample(image.reshape(*image.shape[:2], -1), mask, sample.steps, objects)


@dataclass(frozen=True)
class RandomRotation:
    """Rotate by a random angle of at most ``max_rotation`` degrees about the centre; the size stays."""

    max_rotation: Extent = 15.0
    im_padding_value: Channels = (127.5, 127.5, 127.5)
    label_padding_value: Label = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        angle = generator.uniform(-self.max_rotation, self.max_rotation)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
        return _warped(sample, matrix, (width, height), self.im_padding_value, self.label_padding_value)


@dataclass(frozen=True)
class RandomAffine:
    """Centre the picture on a canvas of ``size`` (width, height), turned, scaled and moved at random.

    Attributes:
        translation_offset: largest shift of the centre of rotation, pixels.
        max_rotation: largest angle, degrees.
        min_scale_factor: smallest scale; 1 is where the picture's mean side fits the canvas's.
        max_scale_factor: largest scale.
    """

    size: Size = (224, 224)
    translation_offset: Extent = 0.0
    max_rotation: Extent = 15.0
    min_scale_factor: Scale = 0.75
    max_scale_factor: Scale = 1.25
    im_padding_value: Channels = (128, 128, 128)
    label_padding_value: Label = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        x, y = generator.uniform(-self.translation_offset, self.translation_offset, 2)
        angle = generator.uniform(-self.max_rotation, self.max_rotation)
        scale = generator.uniform(self.min_scale_factor, self.max_scale_factor)
        scale *= (self.size[0] / width + self.size[1] / height) / 2
        matrix = cv2.getRotationMatrix2D((self.size[0] / 2 + x, self.size[1] / 2 + y), angle, scale)
        # The picture is put with its centre on the canvas's before it is turned.
        matrix[:, 2] += matrix[:, :2] @ ((self.size[0] - width) / 2, (self.size[1] - height) / 2)
        return _warped(sample, matrix, self.size, self.im_padding_value, self.label_padding_value)


@dataclass(frozen=True)
class RandomScaleAspect:
    """Crop a random share of the area with a random aspect and resize it back to the picture's size.

    Attributes:
        min_scale: smallest share of the area; 0 turns the transform off.
        aspect_ratio: the aspect is drawn from ``aspect_ratio`` to its inverse; 0 turns the transform off.
    """

    min_scale: Probability = 0.5
    aspect_ratio: Extent = 0.33

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if self.min_scale == 0 or self.aspect_ratio == 0:
            return sample
        height, width = sample.image.shape[:2]
        ratios = (self.aspect_ratio, 1 / self.aspect_ratio)
        window = _random_window(height, width, (self.min_scale, 1.0), ratios, generator)
        return sample if window is None else resized(_cropped(sample, window), width, height)


Window = tuple[slice, slice]


def _random_window(
    height: int,
    width: int,
    share: tuple[float, float],
    ratios: tuple[float, float],
    generator: np.random.Generator,
    tries: int = 10,
) -> Window | None:
    """Rows and columns of a random share of the area and a random aspect; None where none fits in ten tries."""
    for _ in range(tries):
        area = height * width * generator.uniform(share[0], share[1])
        aspect = np.exp(generator.uniform(np.log(ratios[0]), np.log(ratios[1])))
        columns, rows = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
            return slice(top, top + rows), slice(left, left + columns)
    return None


def _cropped(sample: Sample, window: Window) -> Sample:
    mask = None if sample.mask is None else sample.mask[window]
    image = sample.image[window]
    origin = (-(window[1].start or 0), -(window[0].start or 0))
    objects = sample.objects and sample.objects.moved(offset=origin).cut(*image.shape[:2])
    return Sample(image, mask, sample.steps, objects)


@dataclass(frozen=True)
class PaddingByAspectRatio:
    """Pad on the right or below until width / height is ``aspect_ratio``."""

    aspect_ratio: Scale = 1.0
    im_padding_value: Channels = (127.5, 127.5, 127.5)
    label_padding_value: Label = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        size = (max(width, round(height * self.aspect_ratio)), max(height, round(width / self.aspect_ratio)))
        return padded(sample, *size, self.im_padding_value, self.label_padding_value)


@dataclass(frozen=True)
class ScalePadding:
    """Pad to a square on the right or below, then resize to ``target_size`` (width, height)."""

    target_size: Size = (512, 512)
    im_padding_value: Channels = (127.5, 127.5, 127.5)
    label_padding_value: Label = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        square = PaddingByAspectRatio(1.0, self.im_padding_value, self.label_padding_value)
        return resized(square(sample, generator), *self.target_size)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop of a random share of the area and a random aspect, resized to ``size`` (classification).

    Szegedy et al., "Going Deeper with Convolutions" (2015); where no crop fits, the middle square.
    """

    size: Side = 224
    scale: tuple[Scale, Scale] = (0.08, 1.0)
    ratio: tuple[Scale, Scale] = (3 / 4, 4 / 3)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        window = _random_window(height, width, self.scale, self.ratio, generator)
        if window is None:
            return resized(CenterCrop(min(height, width))(sample, generator), self.size, self.size)
        return resized(_cropped(sample, window), self.size, self.size)


@dataclass(frozen=True)
class CenterCrop:
    """The middle ``size`` x ``size`` pixels."""

    size: Side = 224

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        top, left = max(0, (height - self.size) // 2), max(0, (width - self.size) // 2)
        return _cropped(sample, (slice(top, top + self.size), slice(left, left + self.size)))


@dataclass(frozen=True)
class Letterbox:
    """Resize with the aspect kept, then pad on the right and below to ``target_size`` (width, height)."""

    target_size: Size = (416, 416)
    im_padding_value: Channels = (114, 114, 114)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        ratio = min(self.target_size[0] / width, self.target_size[1] / height)
        longest = round(max(height, width) * ratio)
        sample = ResizeByLong(longest)(sample, generator)
        return padded(sample, *self.target_size, self.im_padding_value, 255)
