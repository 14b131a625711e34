"""Generated scenes with exact boxes: the embedded data set of detection.

Each image is a function of (seed, index) alone. Objects lie on a ground with the spectrum of photographs, in
any colour, size and angle; they overlap, are cut by the border, are shaded, blurred and noisy, and beside them
lie blobs and lines that are nothing. The objects are shapes drawn here, or the items of Fashion-MNIST; the
ground may be taken from a folder of photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from quantrim.errors import DataError
from quantrim.images import read_image
from quantrim.vision.data.datasets import FASHION_MNIST, Arrays
from quantrim.vision.data.objects import Objects

#: Classes of the shapes.
SHAPES = ("disc", "ring", "triangle", "square", "star", "cross")
#: An object is difficult where less of it is seen, or where its box is smaller, pixels.
_SEEN, _SMALL = 0.45, 8.0
_OVERSAMPLED = 4


class Painter(Protocol):
    """Makes objects."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    def paint(self, generator: np.random.Generator, label: int, size: float) -> tuple[np.ndarray, np.ndarray]:
        """Colours float32 (h, w, 3) in 0..1 and coverage float32 (h, w) of an object about ``size`` long."""
        ...


def _polygon(corners: int, inner: float = 1.0) -> np.ndarray:
    """Corners of a regular polygon, or of a star whose inner corners lie at ``inner`` of the radius."""
    count = corners if inner == 1.0 else 2 * corners
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radius = np.where(np.arange(count) % 2 == 0, 1.0, inner) if inner != 1.0 else np.ones(count)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


_OUTLINES = {
    "triangle": _polygon(3),
    "square": _polygon(4),
    "star": _polygon(5, 0.42),
    "cross": np.array([(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1),
                       (-3, -1), (-1, -1)]) / 3.2,
}  # fmt: skip


@dataclass(frozen=True)
class ShapePainter:
    """Discs, rings, triangles, squares, stars and crosses of any colour, turned and squeezed."""

    classes: tuple[str, ...] = SHAPES

    def paint(self, generator: np.random.Generator, label: int, size: float) -> tuple[np.ndarray, np.ndarray]:
        """Colours and coverage of one shape."""
        canvas = np.zeros((int(size * _OVERSAMPLED) + 8,) * 2, np.float32)
        middle, radius = len(canvas) / 2, size * _OVERSAMPLED / 2
        angle, squeeze = generator.uniform(0, 2 * np.pi), generator.uniform(0.75, 1.0)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        kind = self.classes[label]
        if kind in ("disc", "ring"):
            axes = (int(radius), int(radius * squeeze))
            cv2.ellipse(canvas, (int(middle), int(middle)), axes, np.degrees(angle), 0, 360, 1.0, -1)
            if kind == "ring":
                hole = generator.uniform(0.45, 0.7)
                inner = (int(axes[0] * hole), int(axes[1] * hole))
                cv2.ellipse(canvas, (int(middle), int(middle)), inner, np.degrees(angle), 0, 360, 0.0, -1)
        else:
            outline = (_OUTLINES[kind] * (1, squeeze)) @ turn.T * radius + middle
            cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], 1.0)
        side = max(2, len(canvas) // _OVERSAMPLED)
        coverage = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
        return _shaded(generator, side, self._color(generator, label)), coverage

    def _color(self, generator: np.random.Generator, label: int) -> np.ndarray:
        """Three in four objects have about their class's hue, the others any: colour helps and misleads."""
        hue = generator.random()
        if generator.random() < 0.75:
            hue = (label / len(self.classes) + generator.normal(0, 0.05)) % 1
        saturation, value = generator.uniform(0.45, 1.0), generator.uniform(0.35, 1.0)
        pixel = np.array([[[360 * hue, saturation, value]]], np.float32)
        return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]


@dataclass(frozen=True)
class ItemPainter:
    """Grey items such as Fashion-MNIST's, tinted, mirrored and slightly turned.

    Attributes:
        items: images (N, h, w) uint8 on black, and labels (N,).
        classes: their names.
    """

    items: Arrays
    classes: tuple[str, ...] = FASHION_MNIST
    _by_label: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = tuple(np.flatnonzero(self.items.labels == label) for label in range(len(self.classes)))
        object.__setattr__(self, "_by_label", found)

    def paint(self, generator: np.random.Generator, label: int, size: float) -> tuple[np.ndarray, np.ndarray]:
        """Colours and coverage of one item."""
        item = self.items.images[generator.choice(self._by_label[label])].astype(np.float32) / 255
        item = item[:, ::-1] if generator.random() < 0.5 else item
        rows, columns = np.flatnonzero(item.max(axis=1) > 0.05), np.flatnonzero(item.max(axis=0) > 0.05)
        item = item[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        ratio = size / max(item.shape)
        shape = (max(2, round(item.shape[1] * ratio)), max(2, round(item.shape[0] * ratio)))
        wide = cv2.resize(np.ascontiguousarray(item), shape, interpolation=cv2.INTER_CUBIC)
        coverage = np.clip((wide - 0.02) * 12, 0, 1)
        tint = generator.uniform(0.35, 1.0, 3).astype(np.float32)
        return np.clip(0.15 + 0.85 * wide[:, :, None] * tint, 0, 1), coverage


def _shaded(generator: np.random.Generator, side: int, color: np.ndarray) -> np.ndarray:
    """A colour (3,) with a slope of light and some texture, float32 (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    angle = generator.uniform(0, 2 * np.pi)
    light = 1 + generator.uniform(0, 0.8) * (x * np.cos(angle) + y * np.sin(angle))
    coarse = generator.normal(0, generator.uniform(0, 0.12), (6, 6))
    light = light + cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(light[:, :, None] * color, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Scenes:
    """Generated images: ``len(scenes)`` pairs of an RGB image and its objects.

    Attributes:
        count: number of images.
        size: height and width.
        seed: of the whole set.
        difficulty: 0 (large clear objects on smooth ground) to 1 (small, pale, overlapping, noisy ones).
        painter: makes the objects.
        photographs: grounds, RGB uint8; generated ones where there are none.
    """

    count: int = 1000
    size: int = 192
    seed: int = 0
    difficulty: float = 0.5
    painter: Painter = field(default_factory=ShapePainter)
    photographs: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, Objects]:
        """Image uint8 (size, size, 3) RGB and its objects."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = np.random.default_rng((self.seed, index))
        image = self._ground(generator)
        _add_clutter(image, generator, self.difficulty)
        objects = self._populate(image, generator)
        return _camera(image, generator, self.difficulty), objects

    def _ground(self, generator: np.random.Generator) -> np.ndarray:
        if not self.photographs:
            return natural_ground(generator, self.size)
        photograph = self.photographs[generator.integers(len(self.photographs))]
        side = int(min(photograph.shape[:2]) * generator.uniform(0.4, 1.0))
        top = generator.integers(photograph.shape[0] - side + 1)
        left = generator.integers(photograph.shape[1] - side + 1)
        part = np.ascontiguousarray(photograph[top : top + side, left : left + side])
        return cv2.resize(part, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    def _populate(self, image: np.ndarray, generator: np.random.Generator) -> Objects:
        """Paste objects, the nearest last; of each a box of what lies within the image."""
        owner = np.full(image.shape[:2], -1)
        boxes: list[tuple[int, ...]] = []
        labels: list[int] = []
        wholes: list[float] = []
        for _ in range(int(generator.integers(1, 4 + round(6 * self.difficulty)))):
            label = int(generator.integers(len(self.painter.classes)))
            low, high = np.log(0.22 - 0.13 * self.difficulty), np.log(0.5)
            size = self.size * float(np.exp(generator.uniform(low, high)))
            colors, coverage = self.painter.paint(generator, label, size)
            mask = _pasted(image, colors, coverage, generator, pale=0.45 * self.difficulty)
            if mask is None:
                continue
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            owner[mask] = len(labels)
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            labels.append(label)
            wholes.append(max(1.0, float((coverage > 0.5).sum())))
        seen = np.bincount(owner[owner >= 0], minlength=len(labels)) / np.array(wholes or [1.0])[: len(labels)]
        sides = np.array(boxes, np.float32).reshape(-1, 4)
        small = (sides[:, 2:] - sides[:, :2]).min(axis=1, initial=np.inf) < _SMALL
        visible = seen > 0.15  # what is hidden is not asked for
        return Objects.of(boxes, labels, (seen < _SEEN) | small)[visible]


def _pasted(
    image: np.ndarray, colors: np.ndarray, coverage: np.ndarray, generator: np.random.Generator, pale: float
) -> np.ndarray | None:
    """Paste an object somewhere, at most a third of it outside; its mask, or None if nothing is inside."""
    size, (rows, columns) = len(image), coverage.shape
    left = int(generator.uniform(-columns / 3, size - columns * 2 / 3))
    top = int(generator.uniform(-rows / 3, size - rows * 2 / 3))
    y0, x0, y1, x1 = max(0, top), max(0, left), min(size, top + rows), min(size, left + columns)
    part = coverage[y0 - top : y1 - top, x0 - left : x1 - left]
    if part.size == 0 or not (part > 0.5).any():
        return None
    strength = (part * (1 - generator.uniform(0, pale)))[:, :, None]
    target = image[y0:y1, x0:x1]
    target *= 1 - strength
    target += strength * colors[y0 - top : y1 - top, x0 - left : x1 - left]
    mask = np.zeros(image.shape[:2], bool)
    mask[y0:y1, x0:x1] = part > 0.5
    return mask


def natural_ground(generator: np.random.Generator, size: int) -> np.ndarray:
    """Ground with the 1/f amplitude spectrum of photographs (Field, 1987), float32 (size, size, 3) in 0..1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    amplitude = 1 / np.maximum(frequency, 1 / size) ** generator.uniform(1.0, 1.6)
    layers = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * generator.random(amplitude.shape))
        layer = np.fft.irfft2(amplitude * phases, (size, size))
        layers.append((layer - layer.mean()) / max(float(layer.std()), 1e-9))
    light, *tints = layers
    color = generator.uniform(0.25, 0.7) + generator.uniform(-0.12, 0.12, 3)
    contrast, tint = generator.uniform(0.08, 0.22), generator.uniform(0.0, 0.08)
    image = color + contrast * light[:, :, None]
    image = image + tint * (tints[0][:, :, None] * (1, -0.5, -0.5) + tints[1][:, :, None] * (0, 0.5, -1))
    return np.clip(image, 0, 1).astype(np.float32)


def _add_clutter(image: np.ndarray, generator: np.random.Generator, difficulty: float) -> None:
    """Lines and soft blobs that are no objects."""
    size = len(image)
    for _ in range(generator.poisson(5 * difficulty)):
        color = generator.uniform(0, 1, 3).tolist()
        start, end = (tuple(int(v) for v in generator.integers(0, size, 2)) for _ in range(2))
        cv2.line(image, start, end, color, int(generator.integers(1, 4)), cv2.LINE_AA)
    for _ in range(generator.poisson(3 * difficulty)):
        blob = np.zeros(image.shape[:2], np.float32)
        centre = tuple(int(v) for v in generator.integers(0, size, 2))
        axes = tuple(int(v) for v in generator.integers(max(2, size // 40), size // 6, 2))
        cv2.ellipse(blob, centre, axes, generator.uniform(0, 180), 0, 360, 1.0, -1)
        blob = cv2.GaussianBlur(blob, (0, 0), size * 0.02)[:, :, None] * 0.6
        image *= 1 - blob
        image += blob * generator.uniform(0, 1, 3).astype(np.float32)


def _camera(image: np.ndarray, generator: np.random.Generator, difficulty: float) -> np.ndarray:
    """Exposure, defocus and noise; uint8."""
    image = image * np.float32(generator.uniform(1 - 0.4 * difficulty, 1.1))
    blur = difficulty * generator.exponential(0.6)
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    image = image + np.float32(0.04 * difficulty * generator.random()) * noise
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def photographs_in(folder: str | Path) -> tuple[np.ndarray, ...]:
    """All JPEG and PNG files of a folder, in order of their names.

    Raises:
        DataError: there are none, or one can't be read.
    """
    paths: Sequence[Path] = sorted(
        path for path in Path(folder).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    if not paths:
        raise DataError(f"{folder}: no .jpg or .png file in this folder.")
    return tuple(np.ascontiguousarray(read_image(path)) for path in paths)
