"""How a picture is shown to a model: scaled and mirrored copies, overlapping windows.

Each function turns a predictor into one that calls it more often and joins what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quantrim.errors import ConfigError
from quantrim.vision.config import Config
from quantrim.vision.schema import TestSpec

#: Batch of images, float32 (N, C, H, W) → logits (N, classes, ...).
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Views:
    """Views of a picture whose predictions are joined; by default the picture itself.

    Attributes:
        scales: factors of the size; each copy is made from the original picture.
        flip_horizontal: also mirrored left and right.
        flip_vertical: also mirrored top and bottom; with both flips there are four copies.
        crop_size: (width, height) of sliding windows, None for the whole picture.
        stride: (width, height) between windows; two thirds of the window by default.
    """

    scales: tuple[float, ...] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales are {list(self.scales)}; give positive factors.")
        if self.stride is not None and self.crop_size is None:
            raise ConfigError("a stride needs a crop size, the size of the sliding window.")
        for name in ("crop_size", "stride"):
            size = getattr(self, name)
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise ConfigError(f"{name} is {list(size)}; give width and height, both at least 1.")
        window, step = self.crop_size, self.stride
        if window and step and (step[0] > window[0] or step[1] > window[1]):
            raise ConfigError(
                f"stride {list(step)} is longer than the window {list(window)}, leaving pixels unseen."
            )

    def changed(self, **values: Any) -> Views:
        """The views with those values that are not None instead of their own."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})

    def of(self, predict: Predict) -> Predict:
        """A predictor that shows its images to ``predict`` in these views."""
        if self.crop_size is not None:
            default = tuple(max(1, side * 2 // 3) for side in self.crop_size)
            predict = sliding_window(predict, self.crop_size, self.stride or (default[0], default[1]))
        if self.scales == (1.0,) and not (self.flip_horizontal or self.flip_vertical):
            return predict
        return multi_scale(
            predict, self.scales, flip_horizontal=self.flip_horizontal, flip_vertical=self.flip_vertical
        )


def views_of(config: Config) -> Views:
    """Views that ``test_config`` asks for, with PaddleSeg's keys.

    Scales and flips count with ``aug_eval: True``, crop_size and stride with ``is_slide: True``.

    Raises:
        ConfigError: values that don't fit each other.
    """
    spec = config.spec.test_config or TestSpec()
    if spec.is_slide and spec.crop_size is None:
        raise config.fail("test_config", "is_slide needs a crop_size.")
    chosen: dict[str, Any] = {}
    if spec.aug_eval:
        chosen = spec.model_dump(include={"scales", "flip_horizontal", "flip_vertical"})
    if spec.is_slide:
        chosen |= spec.model_dump(include={"crop_size", "stride"})
    try:
        return Views(**chosen)
    except ConfigError as error:
        raise config.fail("test_config", str(error)) from error


def multi_scale(
    predict: Predict,
    scales: Sequence[float],
    *,
    flip_horizontal: bool = False,
    flip_vertical: bool = False,
    multiple: int = 32,
) -> Predict:
    """Sum of soft-max scores over scaled (always from the original picture) and mirrored copies.

    Args:
        predict: images → logits.
        scales: factors of the size.
        flip_horizontal: also left and right exchanged.
        flip_vertical: also top and bottom exchanged.
        multiple: sizes are rounded to it, since many models need sides divisible by their stride.

    Returns:
        Predictor of scores of the images' size; of classifiers, of one row an image.
    """

    def combined(images: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(images)
        height, width = tensor.shape[-2:]
        total = torch.zeros(())
        for scale in scales:
            size = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
            view = tensor
            if size != [height, width] and scale != 1:
                view = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
            for scores in _mirrored(predict, view, flip_horizontal, flip_vertical):
                total = total + _at_size(scores, height, width)
        return total.numpy()

    return combined


def _mirrored(predict: Predict, images: Tensor, horizontal: bool, vertical: bool) -> Iterator[Tensor]:
    """Soft-max scores of the images and of their mirrored copies, turned back."""
    rows = ((), (2,)) if vertical else ((),)
    columns = ((), (3,)) if horizontal else ((),)
    for axes in (down + across for down in rows for across in columns):
        view = images.flip(axes) if axes else images
        scores = torch.from_numpy(_logits(predict(np.ascontiguousarray(view.numpy())))).softmax(dim=1)
        yield scores.flip(axes) if axes and scores.ndim == 4 else scores


def _at_size(scores: Tensor, height: int, width: int) -> Tensor:
    if scores.ndim == 2 or scores.shape[-2:] == (height, width):
        return scores
    return F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)


def _logits(scores: np.ndarray) -> np.ndarray:
    if np.issubdtype(scores.dtype, np.integer):
        raise ConfigError(
            "the model ends with arg max, so that predictions of several views can't be joined. Export it with "
            "output_op none, or evaluate without scales, flips and windows.",
            field="output_op",
        )
    return scores


def sliding_window(predict: Predict, crop: tuple[int, int], stride: tuple[int, int]) -> Predict:
    """Mean of the logits of overlapping crops; ``crop`` and ``stride`` are (width, height)."""

    def combined(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[-2:]
        total: np.ndarray | None = None
        count = np.zeros((height, width), np.float32)
        for window in _windows(height, width, crop, stride):
            scores = _logits(predict(np.ascontiguousarray(images[window])))
            if scores.ndim != 4:
                raise ConfigError("windows slide over segmentation models; this one gives a row an image.")
            if total is None:
                total = np.zeros((*scores.shape[:2], height, width), np.float32)
            total[window] += scores
            count[window[1:]] += 1
        assert total is not None
        return total / count

    return combined


Window = tuple[Any, slice, slice]


def _windows(height: int, width: int, crop: tuple[int, int], stride: tuple[int, int]) -> Iterator[Window]:
    """Windows that cover the picture; the last ones end at its border."""
    columns, rows = (
        sorted({*range(0, max(1, size - side), step), max(0, size - side)})
        for size, side, step in zip((width, height), crop, stride, strict=True)
    )
    for top in rows:
        for left in columns:
            yield ..., slice(top, top + crop[1]), slice(left, left + crop[0])
