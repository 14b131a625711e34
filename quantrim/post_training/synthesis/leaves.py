"""Dead leaves: images of shapes that cover one another, with the statistics of photographs.

Shapes whose sizes follow a power law of exponent 3, each in front of the last, have the edges, the flat areas
and the 1/f spectrum of natural images (Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV
2001); networks learn from them nearly what they learn from photographs (Baradad et al., "Learning to See by
Looking at Noise", NeurIPS 2021). Nothing of a model goes into them.
"""

from __future__ import annotations

import cv2
import numpy as np

#: Smallest and largest radius of a leaf, as shares of the image's side.
_RADII = (0.02, 0.5)
#: Leaves an image: enough to cover it, and to leave small ones in front.
_LEAVES = 250
#: Slope of the light over a leaf, and noise of its surface, on a scale of 0 to 1.
_SHADE, _GRAIN = 0.35, 0.08


def dead_leaves(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """One image.

    Args:
        height: in pixels.
        width: in pixels.
        generator: source of all that is random in it.

    Returns:
        uint8 (height, width, 3).
    """
    contrast, saturation = generator.uniform((0.4, 0.1), (1.0, 0.6))  # photographs differ in both
    picture = _light(height, width, generator) + _colour(contrast, saturation, generator)
    for radius in _radii(generator) * min(height, width):
        mask = np.zeros((height, width), np.uint8)
        centre = generator.uniform((0, 0), (width, height))
        cv2.fillPoly(mask, [_outline(centre, radius, generator)], 255)
        top, bottom, left, right = _extent(mask)
        if bottom <= top:
            continue
        part, shape = picture[top:bottom, left:right], mask[top:bottom, left:right] > 0
        light = contrast * _light(bottom - top, right - left, generator)
        leaf = light + _colour(contrast, saturation, generator)
        part[shape] = leaf[shape]
    blurred = cv2.GaussianBlur(picture, (0, 0), generator.uniform(0.4, 1.5))
    return np.clip(blurred * 255, 0, 255).astype(np.uint8)


def _colour(contrast: float, saturation: float, generator: np.random.Generator) -> np.ndarray:
    """Red, green and blue, float32 (3,) around 0.5: a grey, and what sets the channels apart."""
    grey, channels = generator.uniform(-0.5, 0.5, (2, 3)).astype(np.float32)
    made: np.ndarray = 0.5 + np.float32(contrast) * (grey[:1] + np.float32(saturation) * (channels - grey[:1]))
    return made


def _radii(generator: np.random.Generator) -> np.ndarray:
    """Radii with density r^-3 between the two ends, as shares of the side."""
    low, high = (edge**-2.0 for edge in _RADII)
    drawn: np.ndarray = (low + generator.uniform(0, 1, _LEAVES) * (high - low)) ** -0.5
    return drawn


def _outline(centre: np.ndarray, radius: float, generator: np.random.Generator) -> np.ndarray:
    """Corners, int32 (n, 2): a polygon of 3 to 8 corners, or what looks round."""
    corners = int(generator.integers(3, 9)) if generator.random() < 0.5 else 32
    angles = 2 * np.pi * (np.arange(corners) / corners + generator.random())
    stretch, turn = generator.uniform(0.4, 1.0), generator.uniform(0, np.pi)
    points = radius * np.stack([np.cos(angles), stretch * np.sin(angles)], 1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.rint(points @ rotation.T + centre).astype(np.int32)


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what a mask shows; zeros where it shows nothing."""
    left, top, width, height = cv2.boundingRect(mask)
    return top, top + height, left, left + width


def _light(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """What makes a surface more than one colour, float32 (height, width, 1): a slope of light, and grain."""
    slope = generator.uniform(-_SHADE, _SHADE, 2).astype(np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    grain = generator.standard_normal((height, width), np.float32)
    grain *= _GRAIN * np.float32(generator.random())
    shade: np.ndarray = (slope[0] * y + slope[1] * x + grain)[:, :, None]
    return shade
