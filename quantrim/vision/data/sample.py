"""An image on its way to the model, and the way back of its prediction.

A transform maps a :class:`Sample` and a random generator to a new sample. Images are RGB, float32 in
0..255 until they are normalized; masks are interpolated by nearest neighbour. Sizes are (width, height),
both on the way in and on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, cast

import cv2
import numpy as np
from pydantic import AfterValidator, Field

from quantrim.detection import clipped
from quantrim.errors import ConfigError, DataError, first_line
from quantrim.images import require_size
from quantrim.vision.data.objects import Objects


def _one_or_three(values: Sequence[float]) -> Sequence[float]:
    if len(values) not in (1, 3):
        raise ValueError(f"has {len(values)} values; give 3, or 1 for grey images.")
    return values


#: Legal values of the arguments of transforms, read where a configuration becomes a transform.
Side = Annotated[int, Field(ge=1, le=2**14)]
Size = tuple[Side, Side]
Probability = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=64)]
Extent = Annotated[float, Field(ge=0, le=2**14)]
Channels = Annotated[Sequence[Annotated[float, Field(allow_inf_nan=False)]], AfterValidator(_one_or_three)]
Label = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True, slots=True)
class GeometricStep:
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
        objects: boxes in pixels of ``image``, or None.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    steps: tuple[GeometricStep, ...] = ()
    objects: Objects | None = None


Transform = Callable[[Sample, np.random.Generator], Sample]


class Joining(Protocol):
    """A transform that joins an image with others of its set, as mosaics do.

    Attributes:
        partners: how many others it wants.
    """

    partners: int

    def join(self, sample: Sample, others: Sequence[Sample], generator: np.random.Generator) -> Sample:
        """The joined sample."""
        ...


def resized(sample: Sample, width: int, height: int) -> Sample:
    """The sample at another size, of one pixel at least: a line of a picture may shrink to nothing."""
    width, height = max(1, width), max(1, height)
    require_size(width, height)
    before = GeometricStep("resize", *sample.image.shape[:2])
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = sample.mask
    if mask is not None:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    objects = sample.objects
    if objects is not None:
        objects = objects.moved(scale=(width / before.width, height / before.height))
    return Sample(image.reshape(height, width, -1), mask, (*sample.steps, before), objects)


def padded(sample: Sample, width: int, height: int, value: Sequence[float], label: int) -> Sample:
    """Pad on the right and below up to the size; nothing is cut."""
    rows, columns = sample.image.shape[:2]
    down, right = max(0, height - rows), max(0, width - columns)
    require_size(columns + right, rows + down)
    image = cv2.copyMakeBorder(sample.image, 0, down, 0, right, cv2.BORDER_CONSTANT, value=list(value))
    mask = sample.mask
    if mask is not None:
        mask = cv2.copyMakeBorder(mask, 0, down, 0, right, cv2.BORDER_CONSTANT, value=label)  # type: ignore[call-overload]
    image = image.reshape(*image.shape[:2], -1)  # OpenCV drops a single channel
    return Sample(image, mask, (*sample.steps, GeometricStep("pad", rows, columns)), sample.objects)


def apply(
    transforms: Sequence[Transform],
    sample: Sample,
    generator: np.random.Generator,
    another: Callable[[], Sample] | None = None,
) -> Sample:
    """Run transforms in order.

    Args:
        transforms: of them those that join images want others.
        sample: what they start from.
        generator: source of what is random.
        another: gives an untouched sample of the same set.

    Raises:
        ConfigError: a transform joins images, and there are no others.
        DataError: a transform can't work on an image of this size or these channels.
    """
    for transform in transforms:
        try:
            sample = _applied(transform, sample, generator, another)
        except (cv2.error, ArithmeticError, IndexError, MemoryError, TypeError, ValueError) as error:
            height, width, channels = sample.image.shape
            raise DataError(
                f"transform {type(transform).__name__} fails on an image of {width}x{height} pixels and "
                f"{channels} channels ({first_line(error)}). Correct its arguments."
            ) from error
    return sample


def _applied(
    transform: Transform,
    sample: Sample,
    generator: np.random.Generator,
    another: Callable[[], Sample] | None,
) -> Sample:
    partners = getattr(transform, "partners", 0)
    if not partners:
        return transform(sample, generator)
    if another is None:
        raise ConfigError(f"{type(transform).__name__} joins images of a training set; it is no preprocessing.")
    return cast("Joining", transform).join(sample, [another() for _ in range(partners)], generator)


def undo_boxes(boxes: np.ndarray, steps: Sequence[GeometricStep], size: tuple[int, int]) -> np.ndarray:
    """Bring boxes back to the original image and cut them at its border.

    Args:
        boxes: float32 (N, 4) in pixels of the model's canvas.
        steps: what the transforms did, in order.
        size: height and width of the canvas.
    """
    height, width = size
    for step in reversed(steps):
        if step.kind == "resize":
            ratio = (step.width / width, step.height / height)
            boxes = boxes * np.array([*ratio, *ratio], np.float32)
        height, width = step.height, step.width
        boxes = clipped(boxes, height, width)
    return boxes


def undo(scores: np.ndarray, steps: Sequence[GeometricStep]) -> np.ndarray:
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


def classes_of(scores: np.ndarray, sample: Sample) -> np.ndarray:
    """Class of each pixel of the original picture, from logits (C, h, w) or classes (h, w)."""
    if np.issubdtype(scores.dtype, np.integer):
        wide = undo(scores.reshape(1, *scores.shape[-2:]).astype(np.float32), sample.steps)
        return np.rint(wide[0]).astype(np.int64)
    return undo(scores, sample.steps).argmax(axis=0)
