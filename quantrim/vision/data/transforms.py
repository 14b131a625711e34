"""Image transforms under PaddleSeg's names, safe for segmentation masks, and their way back.

A transform maps a :class:`Sample` and a random generator to a new sample. Images are RGB, float32 in
0..255 until :class:`Normalize`; masks are interpolated by nearest neighbour. Sizes are (width, height),
both on the way in and on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from quantrim.errors import ConfigError, did_you_mean

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """A geometric change that prediction must undo: "resize" or "pad" from a (height, width)."""

    kind: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture on its way to the model.

    Attributes:
        image: (H, W, 3) float32 RGB.
        mask: (H, W) uint8 labels, or None.
        steps: geometric changes so far.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    steps: tuple[Step, ...] = ()


Transform = Callable[[Sample, np.random.Generator], Sample]


def _resized(sample: Sample, width: int, height: int) -> Sample:
    before = Step("resize", *sample.image.shape[:2])
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = sample.mask
    if mask is not None:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return Sample(image.reshape(height, width, -1), mask, (*sample.steps, before))


def _padded(sample: Sample, width: int, height: int, value: Sequence[float], label: int) -> Sample:
    """Pad on the right and below up to the size; nothing is cut."""
    rows, columns = sample.image.shape[:2]
    down, right = max(0, height - rows), max(0, width - columns)
    image = cv2.copyMakeBorder(sample.image, 0, down, 0, right, cv2.BORDER_CONSTANT, value=list(value))
    mask = sample.mask
    if mask is not None:
        mask = cv2.copyMakeBorder(mask, 0, down, 0, right, cv2.BORDER_CONSTANT, value=label)  # type: ignore[call-overload]
    image = image.reshape(*image.shape[:2], -1)  # OpenCV drops a single channel
    return Sample(image, mask, (*sample.steps, Step("pad", rows, columns)))


@dataclass(frozen=True)
class Resize:
    """Resize to ``target_size`` (width, height), whatever the aspect."""

    target_size: Size = (512, 512)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        return _resized(sample, *self.target_size)


@dataclass(frozen=True)
class ResizeByLong:
    """Resize so that the longer side is ``long_size``."""

    long_size: int

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        ratio = self.long_size / max(height, width)
        return _resized(sample, round(width * ratio), round(height * ratio))


@dataclass(frozen=True)
class ResizeByShort:
    """Resize so that the shorter side is ``short_size``."""

    short_size: int

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        ratio = self.short_size / min(height, width)
        return _resized(sample, round(width * ratio), round(height * ratio))


@dataclass(frozen=True)
class LimitLong:
    """Resize only if the longer side is above ``max_long`` or below ``min_long``."""

    max_long: int | None = None
    min_long: int | None = None

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

    min_scale_factor: float = 0.75
    max_scale_factor: float = 1.25
    scale_step_size: float = 0.25

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        low, high, step = self.min_scale_factor, self.max_scale_factor, self.scale_step_size
        scale = generator.uniform(low, high)
        if step > 0:
            scale = low + step * generator.integers(0, int(np.floor((high - low) / step + 1e-9)) + 1)
        height, width = sample.image.shape[:2]
        return _resized(sample, round(width * scale), round(height * scale))


@dataclass(frozen=True)
class ResizeRangeScaling:
    """Resize the longer side to a random value in ``min_value``..``max_value``."""

    min_value: int = 400
    max_value: int = 600

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        return ResizeByLong(int(generator.integers(self.min_value, self.max_value + 1)))(sample, generator)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left and right with probability ``prob``."""

    prob: float = 0.5

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        mask = None if sample.mask is None else sample.mask[:, ::-1]
        return replace(sample, image=sample.image[:, ::-1], mask=mask)


@dataclass(frozen=True)
class RandomVerticalFlip:
    """Mirror top and bottom with probability ``prob``."""

    prob: float = 0.1

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        mask = None if sample.mask is None else sample.mask[::-1]
        return replace(sample, image=sample.image[::-1], mask=mask)


@dataclass(frozen=True)
class Normalize:
    """(x / 255 - mean) / std."""

    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
        return replace(sample, image=(sample.image / np.float32(255) - mean) / std)


@dataclass(frozen=True)
class Padding:
    """Pad to ``target_size`` (width, height) on the right and below."""

    target_size: Size
    im_padding_value: Sequence[float] = (127.5, 127.5, 127.5)
    label_padding_value: int = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        return _padded(sample, *self.target_size, self.im_padding_value, self.label_padding_value)


@dataclass(frozen=True)
class RandomPaddingCrop:
    """Random crop of ``crop_size`` (width, height); smaller pictures are padded first."""

    crop_size: Size = (512, 512)
    im_padding_value: Sequence[float] = (127.5, 127.5, 127.5)
    label_padding_value: int = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        width, height = self.crop_size
        sample = _padded(sample, width, height, self.im_padding_value, self.label_padding_value)
        top = int(generator.integers(0, sample.image.shape[0] - height + 1))
        left = int(generator.integers(0, sample.image.shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        mask = None if sample.mask is None else sample.mask[window]
        return Sample(sample.image[window], mask, sample.steps)


@dataclass(frozen=True)
class RandomBlur:
    """Gaussian blur with probability ``prob`` and a random odd kernel of at most 9 pixels."""

    prob: float = 0.1

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        radius = int(generator.choice([3, 5, 7, 9]))
        return replace(sample, image=cv2.GaussianBlur(sample.image, (radius, radius), 0, sigmaY=0))


@dataclass(frozen=True)
class RandomNoise:
    """Gaussian noise of at most ``max_sigma`` grey levels with probability ``prob``."""

    prob: float = 0.5
    max_sigma: float = 10.0

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        if generator.random() >= self.prob:
            return sample
        noise = generator.standard_normal(sample.image.shape, dtype=np.float32)
        sigma = np.float32(generator.uniform(0, self.max_sigma))
        return replace(sample, image=np.clip(sample.image + sigma * noise, 0, 255))


@dataclass(frozen=True)
class RandomRotation:
    """Rotate by a random angle of at most ``max_rotation`` degrees about the centre; the size stays."""

    max_rotation: float = 15.0
    im_padding_value: Sequence[float] = (127.5, 127.5, 127.5)
    label_padding_value: int = 255

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        angle = generator.uniform(-self.max_rotation, self.max_rotation)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
        image = cv2.warpAffine(sample.image, matrix, (width, height), borderValue=tuple(self.im_padding_value))
        mask = sample.mask
        if mask is not None:
            mask = cv2.warpAffine(
                mask, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=self.label_padding_value
            )
        return replace(sample, image=image, mask=mask)


@dataclass(frozen=True)
class RandomDistort:
    """Random brightness, contrast and saturation, each with probability ``prob``."""

    brightness_range: float = 0.4
    contrast_range: float = 0.4
    saturation_range: float = 0.4
    prob: float = 0.5

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        image = sample.image
        if generator.random() < self.prob:
            image = image * np.float32(generator.uniform(1 - self.brightness_range, 1 + self.brightness_range))
        if generator.random() < self.prob:
            factor = np.float32(generator.uniform(1 - self.contrast_range, 1 + self.contrast_range))
            image = (image - image.mean()) * factor + image.mean()
        if generator.random() < self.prob:
            factor = np.float32(generator.uniform(1 - self.saturation_range, 1 + self.saturation_range))
            grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
            image = (image - grey[:, :, None]) * factor + grey[:, :, None]
        return replace(sample, image=np.clip(image, 0, 255).astype(np.float32))


@dataclass(frozen=True)
class RandomResizedCrop:
    """Square crop of a random share of the area, resized to ``size`` (classification)."""

    size: int = 224
    scale: tuple[float, float] = (0.3, 1.0)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        side = max(1, int(min(height, width) * np.sqrt(generator.uniform(*self.scale))))
        top, left = (int(generator.integers(0, extent - side + 1)) for extent in (height, width))
        window = (slice(top, top + side), slice(left, left + side))
        return _resized(replace(sample, image=sample.image[window]), self.size, self.size)


@dataclass(frozen=True)
class CenterCrop:
    """The middle ``size`` x ``size`` pixels."""

    size: int = 224

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Apply."""
        height, width = sample.image.shape[:2]
        top, left = max(0, (height - self.size) // 2), max(0, (width - self.size) // 2)
        window = (slice(top, top + self.size), slice(left, left + self.size))
        return replace(sample, image=sample.image[window])


TRANSFORMS = {
    kind.__name__: kind
    for kind in (
        Resize, ResizeByLong, ResizeByShort, LimitLong, ResizeStepScaling, ResizeRangeScaling,
        RandomHorizontalFlip, RandomVerticalFlip, Normalize, Padding, RandomPaddingCrop, RandomBlur,
        RandomNoise, RandomRotation, RandomDistort, RandomResizedCrop, CenterCrop,
    )
}  # fmt: skip


def transform_named(spec: dict[str, object]) -> Transform:
    """Transform from its YAML form ``{type: Resize, target_size: [512, 512]}``.

    Raises:
        ConfigError: unknown type or argument.
    """
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in spec.items() if key != "type"}
    kind = TRANSFORMS.get(str(spec.get("type")))
    if kind is None:
        raise ConfigError(
            f"unknown transform {spec.get('type')!r}{did_you_mean(str(spec.get('type')), TRANSFORMS)}"
        )
    fields = kind.__dataclass_fields__
    for key in arguments:
        if key not in fields:
            raise ConfigError(f"transform {kind.__name__}: unknown argument {key!r}{did_you_mean(key, fields)}")
    return kind(**arguments)  # type: ignore[arg-type]


def apply(transforms: Sequence[Transform], sample: Sample, generator: np.random.Generator) -> Sample:
    """Run transforms in order."""
    for transform in transforms:
        sample = transform(sample, generator)
    return sample


def undo(scores: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Bring logits back to the size of the original picture.

    Args:
        scores: float32 (C, h, w).
        steps: what the transforms did, in order.

    Returns:
        float32 (C, H, W).
    """
    for step in reversed(steps):
        if step.kind == "pad":
            scores = scores[:, : step.height, : step.width]
        elif scores.shape[1:] != (step.height, step.width):
            moved = np.ascontiguousarray(scores.transpose(1, 2, 0))
            resized = cv2.resize(moved, (step.width, step.height), interpolation=cv2.INTER_LINEAR)
            scores = resized.reshape(step.height, step.width, -1).transpose(2, 0, 1)
    return scores
