"""Decoders in torch: for losses that look at boxes, and for files that hold the decoder.

The twin of :mod:`quantrim.detection.decoders`, tied to it by tests; written so that an export leaves constants
where the grids are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.detection import Decoder, DflDecoder, SsdDecoder, YoloV3Decoder, YoloXDecoder
from quantrim.errors import ModelError
from quantrim.vision.models.detection.base import require_detector

Size = tuple[int, int]


def cells(height: int, width: int, like: Tensor) -> Tensor:
    """Column and row of each cell, (height * width, 2), in the dtype and on the device of ``like``."""
    rows = torch.arange(height, dtype=like.dtype, device=like.device)
    columns = torch.arange(width, dtype=like.dtype, device=like.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)


def points(maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cells of all levels (P, 2), and the stride of each (P, 1)."""
    grids = [cells(int(one.shape[2]), int(one.shape[3]), one) for one in maps]
    steps = [torch.full_like(grid[:, :1], stride) for grid, stride in zip(grids, strides, strict=True)]
    return torch.cat(grids), torch.cat(steps)


def rows_of(maps: Sequence[Tensor]) -> Tensor:
    """Maps (N, K, h, w) of all levels as rows (N, P, K)."""
    return torch.cat([one.flatten(2) for one in maps], dim=2).transpose(1, 2)


def by_anchor(one: Tensor, anchors: int) -> Tensor:
    """A map (N, A * K, h, w) as (N, A, h * w, K)."""
    return torch.unflatten(one.flatten(2), 1, (anchors, -1)).transpose(2, 3)


def corners(centres: Tensor, sizes: Tensor) -> Tensor:
    """Corners (..., 4) of centres and sizes (..., 2)."""
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)


def yolov3_boxes(values: Tensor, anchors: Tensor, grid: Tensor, stride: int) -> Tensor:
    """Boxes of a level (N, A, h * w, 5 + C) of raw values; anchors (A, 2) in pixels, grid (h * w, 2)."""
    centres = (values[..., :2].sigmoid() + grid) * stride
    return corners(centres, values[..., 2:4].exp() * anchors[:, None])


def yolox_boxes(rows: Tensor, grid: Tensor, steps: Tensor) -> Tensor:
    """Boxes of rows (N, P, 4 and more) of raw values."""
    return corners((rows[..., :2] + grid) * steps, rows[..., 2:4].exp() * steps)


def dfl_boxes(sides: Tensor, bins: int, centres: Tensor, steps: Tensor) -> Tensor:
    """Boxes of distributions (N, P, 4 * (bins + 1)) around centres (P, 2), both in pixels."""
    shares = torch.unflatten(sides, 2, (4, bins + 1)).softmax(dim=-1)
    reach = (shares * torch.arange(bins + 1, dtype=sides.dtype, device=sides.device)).sum(dim=-1) * steps
    return torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)


def _yolov3(decoder: YoloV3Decoder, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    boxes, scores = [], []
    for one, anchors, stride in zip(maps, decoder.anchors, decoder.strides, strict=True):
        values = by_anchor(one, len(anchors))
        sizes = torch.tensor(anchors, dtype=one.dtype, device=one.device)
        grid = cells(int(one.shape[2]), int(one.shape[3]), one)
        boxes.append(yolov3_boxes(values, sizes, grid, stride).flatten(1, 2))
        objects = values[..., 4:5].sigmoid()
        sure = objects * (objects >= decoder.objectness).to(one.dtype)
        scores.append((sure * values[..., 5:].sigmoid()).flatten(1, 2))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def _yolox(decoder: YoloXDecoder, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    rows = rows_of(maps)
    scores = rows[..., 4:].sigmoid()
    return yolox_boxes(rows, *points(maps, decoder.strides)), scores[..., :1] * scores[..., 1:]


def _dfl(decoder: DflDecoder, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    levels = len(decoder.strides)
    grid, steps = points(maps[:levels], decoder.strides)
    boxes = dfl_boxes(rows_of(maps[levels:]), decoder.bins, (grid + decoder.offset) * steps, steps)
    return boxes, rows_of(maps[:levels]).sigmoid()


def ssd_rows(maps: Sequence[Tensor], sizes: Sequence[Sequence[tuple[float, float]]]) -> Tensor:
    """Maps (N, A * K, h, w) as (N, P, K), default boxes innermost."""
    rows = [
        by_anchor(one, len(own)).transpose(1, 2).flatten(1, 2) for one, own in zip(maps, sizes, strict=True)
    ]
    return torch.cat(rows, dim=1)


def ssd_priors(decoder: SsdDecoder, maps: Sequence[Tensor], size: Size) -> Tensor:
    """Default boxes (P, 4), centre and size in pixels."""
    grids = [(int(one.shape[2]), int(one.shape[3])) for one in maps]
    return torch.from_numpy(decoder.priors(grids, size)).to(maps[0])


def _ssd(decoder: SsdDecoder, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    levels = len(decoder.sizes)
    priors = ssd_priors(decoder, maps[:levels], size)
    offsets = ssd_rows(maps[levels:], decoder.sizes)
    centres = offsets[..., :2] / decoder.weights[0] * priors[:, 2:] + priors[:, :2]
    boxes = corners(centres, (offsets[..., 2:] / decoder.weights[1]).exp() * priors[:, 2:])
    return boxes, ssd_rows(maps[:levels], decoder.sizes).softmax(dim=-1)[..., 1:]


def canvas_of(decoder: Decoder, maps: Sequence[Tensor]) -> Size:
    """Height and width of the images that raw maps were made of, multiples of the first level's stride.

    Raises:
        ModelError: the decoder belongs to files that decode themselves.
    """
    if isinstance(decoder, SsdDecoder):
        stride = decoder.stride
    elif isinstance(decoder, YoloV3Decoder | YoloXDecoder | DflDecoder):
        stride = decoder.strides[0]
    else:
        raise ModelError(f"decoder {decoder.type!r} reads files that decode themselves.")
    return stride * int(maps[0].shape[2]), stride * int(maps[0].shape[3])


def candidates(decoder: Decoder, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """Boxes (N, P, 4) in pixels of the canvas and scores (N, P, C), as the decoder's numpy twin gives them.

    Raises:
        ModelError: the decoder belongs to files that decode themselves.
    """
    if isinstance(decoder, YoloV3Decoder):
        return _yolov3(decoder, maps)
    if isinstance(decoder, YoloXDecoder):
        return _yolox(decoder, maps)
    if isinstance(decoder, DflDecoder):
        return _dfl(decoder, maps)
    if isinstance(decoder, SsdDecoder):
        return _ssd(decoder, maps, size)
    raise ModelError(f"decoder {decoder.type!r} reads files that decode themselves.")


class Decoded(nn.Module):
    """A detector with its decoder behind it: boxes (N, P, 4) and scores (N, P, C).

    Args:
        detector: raw maps out.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector, self.read = detector, require_detector(detector).decoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates, their boxes cut at the border of the canvas."""
        height, width = int(images.shape[2]), int(images.shape[3])
        boxes, scores = candidates(self.read, self.detector(images), (height, width))
        limits = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
        return torch.minimum(F.relu(boxes), limits), scores
