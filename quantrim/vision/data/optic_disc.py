"""Fundus-like photographs with their optic disc marked: the embedded data set.

Each picture is a function of (seed, index) alone. It shows what makes the real task hard: the disc is a
bright ellipse that vessels cross, lesions are as bright as the disc, the light falls off unevenly, and
some pictures are dark, blurred or noisy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from quantrim.files import atomic_path, write_text

CLASSES = ("background", "optic disc")
_FIELD = 0.48  # radius of the retina, as a share of the picture


@dataclass(frozen=True, slots=True)
class OpticDiscImages:
    """Generated pictures: ``len(images)`` pairs of an RGB picture and its mask.

    Attributes:
        count: number of pictures.
        size: height and width.
        seed: of the whole set.
        difficulty: 0 (clear pictures) to 1 (blur, noise, uneven light and bright lesions).
    """

    count: int = 267
    size: int = 256
    seed: int = 0
    difficulty: float = 0.6

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture uint8 (size, size, 3) RGB and mask uint8 (size, size) of 0 and 1."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = np.random.default_rng((self.seed, index))
        disc = _draw_disc(generator, self.size)
        picture = _retina(generator, self.size)
        picture = _add_lesions(picture, generator, disc, self.difficulty)
        picture = _add_disc(picture, disc, generator)
        picture = _add_vessels(picture, generator, disc)
        picture = _light(picture, generator, self.size, self.difficulty)
        mask = np.zeros((self.size, self.size), np.uint8)
        _ellipse(mask, disc, 1.0, 1)
        return _camera(picture, generator, self.difficulty), mask


@dataclass(frozen=True, slots=True)
class _Disc:
    x: float
    y: float
    radius_x: float
    radius_y: float
    angle: float


def _draw_disc(generator: np.random.Generator, size: int) -> _Disc:
    side = 1 if generator.random() < 0.5 else -1
    radius = size * generator.uniform(0.055, 0.1)
    return _Disc(
        x=size * (0.5 + side * generator.uniform(0.12, 0.3)),
        y=size * (0.5 + generator.uniform(-0.1, 0.1)),
        radius_x=radius,
        radius_y=radius * generator.uniform(1.0, 1.25),
        angle=generator.uniform(-20, 20),
    )


def _ellipse(canvas: np.ndarray, disc: _Disc, scale: float, value: float) -> None:
    axes = (max(1, round(disc.radius_x * scale)), max(1, round(disc.radius_y * scale)))
    cv2.ellipse(canvas, (round(disc.x), round(disc.y)), axes, disc.angle, 0, 360, value, -1, cv2.LINE_8)


def _retina(generator: np.random.Generator, size: int) -> np.ndarray:
    """Orange-red ground with slow variation, float32 RGB in 0..1."""
    color = np.array([0.62, 0.28, 0.12]) * generator.uniform(0.75, 1.2) + generator.normal(0, 0.03, 3)
    slow = cv2.resize(generator.normal(0, 1, (6, 6)), (size, size), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(
        generator.normal(0, 1, (size // 8, size // 8)), (size, size), interpolation=cv2.INTER_LINEAR
    )
    texture = 1 + 0.05 * slow + 0.03 * fine
    return (texture[:, :, None] * color).astype(np.float32)


def _add_disc(picture: np.ndarray, disc: _Disc, generator: np.random.Generator) -> np.ndarray:
    """Bright ellipse with soft rim and a paler cup inside."""
    size = len(picture)
    rim, cup = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    _ellipse(rim, disc, 1.0, 1.0)
    _ellipse(cup, disc, generator.uniform(0.3, 0.6), 1.0)
    blur = 0.1 * disc.radius_x
    rim, cup = (cv2.GaussianBlur(layer, (0, 0), max(0.6, blur))[:, :, None] for layer in (rim, cup))
    color = np.array([0.95, 0.72, 0.42], np.float32) * np.float32(generator.uniform(0.8, 1.05))
    pale = np.array([1.0, 0.9, 0.7], np.float32)
    strength = generator.uniform(0.55, 0.95)
    picture = picture * (1 - strength * rim) + strength * rim * color
    return picture * (1 - 0.5 * cup * rim) + 0.5 * cup * rim * pale


def _add_vessels(picture: np.ndarray, generator: np.random.Generator, disc: _Disc) -> np.ndarray:
    """Branching dark curves that leave the disc."""
    layer = np.zeros(picture.shape[:2], np.float32)
    for _ in range(int(generator.integers(7, 11))):
        angle = generator.uniform(0, 2 * np.pi)
        _branch(
            layer,
            generator,
            np.array([disc.x, disc.y]),
            angle,
            len(picture) * generator.uniform(0.008, 0.016),
            3,
        )
    layer = cv2.GaussianBlur(layer, (0, 0), 0.7)[:, :, None]
    dark = np.array([0.35, 0.08, 0.05], np.float32)
    return picture * (1 - 0.65 * layer) + 0.65 * layer * dark


def _branch(
    layer: np.ndarray, generator: np.random.Generator, at: np.ndarray, angle: float, width: float, depth: int
) -> None:
    size = len(layer)
    bend = generator.normal(0, 0.06)
    points = [at]
    for step in range(int(generator.integers(10, 18))):
        angle += bend + generator.normal(0, 0.08)
        points.append(points[-1] + size * 0.026 * np.array([np.cos(angle), np.sin(angle)]))
        if depth and step > 3 and generator.random() < 0.16:
            turn = angle + generator.choice([-1, 1]) * generator.uniform(0.4, 0.8)
            _branch(layer, generator, points[-1], turn, width * 0.65, depth - 1)
    line = np.round(np.stack(points)).astype(np.int32)
    cv2.polylines(layer, [line], False, 1.0, max(1, round(width)), cv2.LINE_AA)


def _add_lesions(
    picture: np.ndarray, generator: np.random.Generator, disc: _Disc, difficulty: float
) -> np.ndarray:
    """Macula, bright exudates and dark bleedings: what must not be taken for the disc."""
    size = len(picture)
    bright, dark = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    opposite = size - disc.x + size * generator.normal(0, 0.03)
    macula = _Disc(opposite, disc.y + size * 0.03, size * 0.07, size * 0.07, 0)
    _ellipse(dark, macula, 1.0, 0.5)
    for _ in range(generator.poisson(6 * difficulty)):
        radius = size * generator.uniform(0.008, 0.045)
        x, y = generator.uniform(0.15, 0.85, 2) * size
        blob = _Disc(x, y, radius, radius * generator.uniform(0.6, 1.4), generator.uniform(0, 180))
        _ellipse(bright if generator.random() < 0.7 else dark, blob, 1.0, generator.uniform(0.4, 0.9))
    bright, dark = (cv2.GaussianBlur(layer, (0, 0), size * 0.008)[:, :, None] for layer in (bright, dark))
    yellow = np.array([0.95, 0.8, 0.45], np.float32)
    return (picture * (1 - 0.5 * dark)) * (1 - 0.8 * bright) + 0.8 * bright * yellow


def _light(picture: np.ndarray, generator: np.random.Generator, size: int, difficulty: float) -> np.ndarray:
    """Round field of view, vignetting and a slope of brightness."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    radius = np.sqrt(x * x + y * y)
    direction = generator.uniform(0, 2 * np.pi)
    slope = 1 + difficulty * generator.uniform(0, 0.9) * (x * np.cos(direction) + y * np.sin(direction))
    fall = 1 - generator.uniform(0.2, 0.6) * (radius / _FIELD) ** 2
    field = np.clip((_FIELD - radius) * size / 2, 0, 1)
    return picture * (slope * fall * field)[:, :, None].astype(np.float32)


def _camera(picture: np.ndarray, generator: np.random.Generator, difficulty: float) -> np.ndarray:
    """Exposure, defocus and noise; uint8."""
    picture = picture * generator.uniform(1 - 0.45 * difficulty, 1.15)
    blur = difficulty * generator.exponential(0.9)
    if blur > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    noise = generator.standard_normal(picture.shape, dtype=np.float32)
    picture = picture + 0.03 * np.float32(difficulty * generator.random()) * noise
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def write_optic_disc(root: str | Path, *, train: int = 267, val: int = 76, test: int = 38, size: int = 512,
                     seed: int = 0) -> None:  # fmt: skip
    """Write a generated set in OpticDiscSeg's layout.

    ``JPEGImages/``, ``Annotations/`` and ``train_list.txt``, ``val_list.txt``, ``test_list.txt`` with
    "image mask" lines.

    Args:
        root: folder to fill.
        train: pictures for training; val and test likewise.
        val: pictures for validation.
        test: pictures for the test.
        size: height and width.
        seed: of the set.
    """
    root = Path(root)
    for part, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        lines = []
        images = OpticDiscImages(count, size, seed * 3 + part)
        for index in range(count):
            picture, mask = images[index]
            names = (f"JPEGImages/{split}_{index:04}.png", f"Annotations/{split}_{index:04}.png")
            for name, pixels in zip(names, (picture[:, :, ::-1], mask), strict=True):
                with atomic_path(root / name) as temporary:
                    cv2.imwrite(str(temporary), pixels)
            lines.append(" ".join(names))
        write_text(root / f"{split}_list.txt", "\n".join(lines) + "\n")
