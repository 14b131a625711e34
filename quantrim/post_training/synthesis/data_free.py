"""Calibration without data: from BatchNorm statistics where a module has them, on dead leaves otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from quantrim.errors import ConfigError
from quantrim.graph import read_onnx
from quantrim.graph.feeds import ImagePreprocess, calibration_feeds
from quantrim.graph.ports import input_ports
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.synthesis.leaves import dead_leaves

if TYPE_CHECKING:
    from torch import nn

#: Side of a leaf image where the model takes any size, and at most: preparation fits it to the input.
_SIDE, _LARGEST = 256, 1024


@dataclass(frozen=True, slots=True)
class DataFree:
    """Stands where calibration data would: ``ptq(model, DataFree(), "int8.onnx")``.

    An nn.Module with BatchNorm layers gets dead leaves, every other one of which is changed until those layers
    see the statistics that they remember; a file, in which BatchNorm is folded into the convolutions, and a
    module without it get dead leaves alone. Images of statistics alone were worse than leaves alone
    (EfficientNet-Lite0): they reach the means and variances by other ways than photographs do.

    Attributes:
        images: images to make; three quarters calibrate, the others judge.
        steps: steps towards the statistics; each is a forward and a backward pass of half the images.
        seed: of everything random.

    Raises:
        ConfigError: an illegal value; ``error.field`` names it.
    """

    images: int = 64
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("images", 4), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.", field=name)

    def calibration(
        self,
        model: str | Path | nn.Module,
        path: Path,
        config: PtqConfig,
        preprocess: ImagePreprocess | Callable[[Path], np.ndarray],
        folder: Path,
    ) -> tuple[Any, PtqConfig, str]:
        """What to calibrate on, settings for it, and a note on what it is.

        Args:
            model: what the user gave.
            path: the same as an ONNX file.
            config: settings.
            preprocess: how an image becomes an input.
            folder: for images.

        Raises:
            DataError: the model takes no images.
        """
        leaves = folder / "leaves"
        ports = input_ports(read_onnx(path))
        self._draw(leaves, config.input_shape or ports[0].shape)
        config = replace(config, samples=self.images * 3 // 4)
        told = "Calibrated without data, on images of"
        beware = "It is judged on such images as well; give judge_data to have it judged on real ones."
        layers = 0 if isinstance(model, str | Path) else _statistics(model)
        if isinstance(model, str | Path) or not layers:
            return leaves, config, f"{told} random shapes (dead leaves). {beware}"
        from quantrim.post_training.synthesis.batch_norm import images_of_statistics

        feeds = calibration_feeds(
            leaves, ports, samples=None, batch_size=1, preprocess=preprocess, shape=config.input_shape
        )
        start = np.concatenate([feed[ports[0].name] for feed in feeds]).astype(np.float32)
        start[::2] = images_of_statistics(model, start[::2], steps=self.steps)
        return (
            start,
            config,
            f"{told} the statistics of {layers} BatchNorm layers and of random shapes. {beware}",
        )

    def _draw(self, folder: Path, shape: tuple[int | None, ...]) -> None:
        """Dead leaves as .png files, of the input's size where it is known."""
        sides = [int(size) for size in shape[-2:] if size] if len(shape) == 4 else []
        height, width = (min(side, _LARGEST) for side in (sides if len(sides) == 2 else (_SIDE, _SIDE)))
        folder.mkdir()
        generator = np.random.default_rng(self.seed)
        for number in range(self.images):
            Image.fromarray(dead_leaves(height, width, generator)).save(folder / f"{number:05d}.png")


def _statistics(module: nn.Module) -> int:
    """BatchNorm layers of a module that remember something."""
    from quantrim.post_training.synthesis.batch_norm import layers_with_statistics

    return len(layers_with_statistics(module))
