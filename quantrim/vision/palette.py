"""The colours that masks are shown in."""

from __future__ import annotations

import numpy as np


def _palette() -> np.ndarray:
    """uint8 (256, 3): black, seven colours that stand out on photographs, then PASCAL VOC's colour map."""
    numbers = np.arange(256)
    bits = [[numbers >> (3 * level + channel) & 1 for level in range(3)] for channel in range(3)]
    voc = np.array([sum(bit << (7 - level) for level, bit in enumerate(each)) for each in bits], np.uint8).T
    first = [[0, 0, 0], [0, 200, 90], [220, 60, 40], [40, 90, 220], [240, 190, 20], [160, 60, 200],
             [60, 200, 220], [240, 120, 160]]  # fmt: skip
    return np.concatenate([np.array(first, np.uint8), voc[len(first) :]])


#: Colour of each class.
PALETTE = _palette()
