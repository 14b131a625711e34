"""What the outputs of a detector mean: a decoder is data, and knows how to read arrays.

Every decoder turns outputs, batch first, into candidates: boxes float32 (N, P, 4) in pixels of the canvas
and scores float32 (N, P, C). The arithmetic is that of the papers; none of it knows an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from quantrim.detection.boxes import Detections, to_corners
from quantrim.errors import ConfigError, ModelError, in_words

Candidates = tuple[np.ndarray, np.ndarray]
Size = tuple[int, int]
_LARGEST_LOG = np.float32(20)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def exponential(x: np.ndarray) -> np.ndarray:
    """e^x of a size's logarithm; beyond e^20 a box is larger than any canvas, and infinity has no corners."""
    return np.exp(np.minimum(x, _LARGEST_LOG))


def softmax(x: np.ndarray) -> np.ndarray:
    """Soft-max over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _cells(height: int, width: int) -> np.ndarray:
    """Column and row of each cell of a grid, float32 (height * width, 2)."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float32)


def _points(size: Size, strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cells of all levels (P, 2), and the stride of each (P, 1)."""
    grids = [_cells(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
    steps = [np.full((len(grid), 1), stride, np.float32) for grid, stride in zip(grids, strides, strict=True)]
    return np.concatenate(grids), np.concatenate(steps)


def _rows(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Maps (N, C, H, W), or rows (N, P, C) as they are, of all levels as rows (N, P, C)."""
    rows = [one if one.ndim == 3 else one.reshape(*one.shape[:2], -1).transpose(0, 2, 1) for one in outputs]
    return np.concatenate(rows, axis=1).astype(np.float32)


def _require(outputs: Sequence[np.ndarray], count: int, kind: str) -> None:
    if len(outputs) != count:
        raise ModelError(f"decoder {kind!r} reads {count} outputs, the model gives {len(outputs)}.")


def _require_width(rows: np.ndarray, width: int, kind: str) -> None:
    if rows.shape[-1] != width:
        raise ModelError(f"decoder {kind!r} reads {width} values a point, the model gives {rows.shape[-1]}.")


def _require_points(rows: np.ndarray, points: int, size: Size, kind: str) -> None:
    if rows.shape[1] != points:
        raise ModelError(
            f"decoder {kind!r}: a canvas of {size[0]}x{size[1]} has {points} points, the model gives "
            f"{rows.shape[1]}. Check the strides and the input size."
        )


@dataclass(frozen=True, slots=True)
class YoloV3Decoder:
    """Anchors on grids: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv 1804.02767.

    Attributes:
        num_classes: C.
        anchors: for each level, (width, height) in pixels of each of its A anchors.
        strides: of the levels; outputs are maps (N, A * (5 + C), H, W) of x, y, w, h, objectness, classes.
        objectness: candidates below are no objects, whatever their class says (Paddle's conf_thresh).
    """

    num_classes: int
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    strides: tuple[int, ...] = (32, 16, 8)
    objectness: float = 0.005
    type: Literal["yolov3"] = "yolov3"

    def candidates(self, outputs: Sequence[np.ndarray], size: Size) -> Candidates:
        """Boxes (N, P, 4) and scores (N, P, C); P runs over levels, anchors, rows, columns."""
        _require(outputs, len(self.strides), self.type)
        levels = [
            self._level(np.asarray(output, np.float32), np.array(anchors, np.float32), stride)
            for output, anchors, stride in zip(outputs, self.anchors, self.strides, strict=True)
        ]
        boxes, scores = (np.concatenate(parts, axis=1) for parts in zip(*levels, strict=True))
        return boxes, scores

    def _level(self, output: np.ndarray, anchors: np.ndarray, stride: int) -> Candidates:
        batch, channels, height, width = output.shape
        each = 5 + self.num_classes
        if channels != len(anchors) * each:
            raise ModelError(
                f"decoder {self.type!r}: stride {stride} has {channels} channels, but {len(anchors)} anchors "
                f"of {each} values need {len(anchors) * each}."
            )
        values = output.reshape(batch, len(anchors), each, height * width).transpose(0, 1, 3, 2)
        centres = (sigmoid(values[..., :2]) + _cells(height, width)) * stride
        sizes = exponential(values[..., 2:4]) * anchors[None, :, None]
        boxes = to_corners(np.concatenate([centres, sizes], axis=-1))
        objects = sigmoid(values[..., 4:5])
        scores = objects * sigmoid(values[..., 5:]) * (objects >= self.objectness)
        return boxes.reshape(batch, -1, 4), scores.reshape(batch, -1, self.num_classes)


@dataclass(frozen=True, slots=True)
class YoloXDecoder:
    """Points without anchors: Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv 2107.08430.

    Attributes:
        num_classes: C.
        strides: of the levels. Outputs are maps (N, 5 + C, H, W) a level, or one array (N, P, 5 + C) of all
            of them, of dx, dy, log w, log h, objectness, classes.
        activated: objectness and classes have gone through their sigmoid in the file.
    """

    num_classes: int
    strides: tuple[int, ...] = (8, 16, 32)
    activated: bool = False
    type: Literal["yolox"] = "yolox"

    def candidates(self, outputs: Sequence[np.ndarray], size: Size) -> Candidates:
        """Boxes (N, P, 4) and scores (N, P, C)."""
        if len(outputs) != 1:
            _require(outputs, len(self.strides), self.type)
        rows = _rows(outputs)
        _require_width(rows, 5 + self.num_classes, self.type)
        cells, steps = _points(size, self.strides)
        _require_points(rows, len(cells), size, self.type)
        boxes = np.concatenate([(rows[..., :2] + cells) * steps, exponential(rows[..., 2:4]) * steps], axis=-1)
        scores = rows[..., 4:] if self.activated else sigmoid(rows[..., 4:])
        return to_corners(boxes), scores[..., :1] * scores[..., 1:]


@dataclass(frozen=True, slots=True)
class DflDecoder:
    """Distances as distributions: Li et al., "Generalized Focal Loss", arXiv 2006.04388 (PicoDet, NanoDet).

    Attributes:
        num_classes: C.
        bins: highest distance in strides; a side is a distribution over ``bins + 1`` values.
        strides: of the L levels. Outputs are L arrays of class scores, then L of 4 * (bins + 1) values (left,
            top, right, bottom), each a map (N, K, H, W) or rows (N, H * W, K).
        activated: the class scores have gone through their sigmoid in the file.
        offset: where in its cell a point lies.
    """

    num_classes: int
    bins: int = 7
    strides: tuple[int, ...] = (8, 16, 32, 64)
    activated: bool = False
    offset: float = 0.5
    type: Literal["dfl"] = "dfl"

    def candidates(self, outputs: Sequence[np.ndarray], size: Size) -> Candidates:
        """Boxes (N, P, 4) and scores (N, P, C)."""
        levels = len(self.strides)
        _require(outputs, 2 * levels, self.type)
        classes, sides = _rows(outputs[:levels]), _rows(outputs[levels:])
        _require_width(classes, self.num_classes, self.type)
        _require_width(sides, 4 * (self.bins + 1), self.type)
        cells, steps = _points(size, self.strides)
        _require_points(classes, len(cells), size, self.type)
        shares = softmax(sides.reshape(*sides.shape[:2], 4, self.bins + 1))
        reach = shares @ np.arange(self.bins + 1, dtype=np.float32) * steps
        centres = (cells + np.float32(self.offset)) * steps
        boxes = np.concatenate([centres - reach[..., :2], centres + reach[..., 2:]], axis=-1)
        return boxes, classes if self.activated else sigmoid(classes)


@dataclass(frozen=True, slots=True)
class SsdDecoder:
    """Default boxes: Liu et al., "SSD: Single Shot MultiBox Detector", arXiv 1512.02325.

    Attributes:
        num_classes: C, without the background.
        sizes: for each level, (width, height) as shares of the canvas of each of its A default boxes.
        stride: pixels a cell of the first level, for training; canvases are multiples of it.
        weights: of the offsets of centres and of the logarithms of sizes, the inverse of SSD's variances.
            Outputs are L maps (N, A * (C + 1), H, W) of class logits, background first, then L maps
            (N, A * 4, H, W) of offsets.
    """

    num_classes: int
    sizes: tuple[tuple[tuple[float, float], ...], ...]
    stride: int = 16
    weights: tuple[float, float] = (10.0, 5.0)
    type: Literal["ssd"] = "ssd"

    def candidates(self, outputs: Sequence[np.ndarray], size: Size) -> Candidates:
        """Boxes (N, P, 4) and scores (N, P, C); P runs over levels, rows, columns, default boxes."""
        levels = len(self.sizes)
        _require(outputs, 2 * levels, self.type)
        grids = [(one.shape[2], one.shape[3]) for one in outputs[:levels]]
        classes = self._by_box(outputs[:levels], self.num_classes + 1)
        offsets = self._by_box(outputs[levels:], 4)
        priors = self.priors(grids, size)
        centres = offsets[..., :2] / np.float32(self.weights[0]) * priors[:, 2:] + priors[:, :2]
        sizes = exponential(offsets[..., 2:] / np.float32(self.weights[1])) * priors[:, 2:]
        boxes = to_corners(np.concatenate([centres, sizes], axis=-1))
        return boxes, softmax(classes)[..., 1:]

    def priors(self, grids: Sequence[Size], size: Size) -> np.ndarray:
        """Default boxes float32 (P, 4), centre and size in pixels, of grids of (rows, columns)."""
        height, width = size
        levels = []
        for (rows, columns), shares in zip(grids, self.sizes, strict=True):
            centres = (_cells(rows, columns) + 0.5) / (columns, rows)
            boxes = np.empty((rows * columns, len(shares), 4), np.float32)
            boxes[..., :2], boxes[..., 2:] = centres[:, None], np.array(shares, np.float32)
            levels.append(boxes.reshape(-1, 4) * (width, height, width, height))
        return np.concatenate(levels).astype(np.float32)

    def _by_box(self, maps: Sequence[np.ndarray], values: int) -> np.ndarray:
        """Maps (N, A * values, H, W) as (N, P, values)."""
        rows = []
        for one, shares in zip(maps, self.sizes, strict=True):
            batch, channels, height, width = one.shape
            if channels != len(shares) * values:
                raise ModelError(
                    f"decoder {self.type!r}: a map of {height}x{width} has {channels} channels, but "
                    f"{len(shares)} default boxes of {values} values need {len(shares) * values}."
                )
            each = one.reshape(batch, len(shares), values, height * width)
            rows.append(each.transpose(0, 3, 1, 2).reshape(batch, -1, values))
        return np.concatenate(rows, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class BoxesDecoder:
    """Boxes that the file has decoded, not yet suppressed.

    Attributes:
        num_classes: C.
        form: "xyxy", "xywh" or "cxcywh".
        normalized: coordinates are shares of the canvas instead of pixels.
        background: the scores' first column is the background. Outputs are boxes (N, P, 4) and scores (N, P,
            C), or one array (N, P, 4 + C) of both.
    """

    num_classes: int
    form: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    normalized: bool = False
    background: bool = False
    type: Literal["boxes"] = "boxes"

    def candidates(self, outputs: Sequence[np.ndarray], size: Size) -> Candidates:
        """Boxes (N, P, 4) and scores (N, P, C)."""
        if len(outputs) == 1:
            outputs = (outputs[0][..., :4], outputs[0][..., 4:])
        _require(outputs, 2, self.type)
        boxes, scores = (np.asarray(one, np.float32) for one in outputs)
        _require_width(scores, self.num_classes + self.background, self.type)
        if self.normalized:
            boxes = boxes * np.array([size[1], size[0]] * 2, np.float32)
        return to_corners(boxes, self.form), scores[..., int(self.background) :]


@dataclass(frozen=True, slots=True)
class RowsDecoder:
    """Detections of a file that ends with non-maximum suppression.

    Attributes:
        num_classes: C. The first output holds rows (K, 7) of image, class, score, x1, y1, x2, y2 in pixels.
    """

    num_classes: int
    type: Literal["rows"] = "rows"

    def detections(self, outputs: Sequence[np.ndarray], batch: int | None = None) -> list[Detections]:
        """Detections of each of ``batch`` images, best first; up to the last one that has any by default."""
        rows = np.asarray(outputs[0], np.float32)
        _require_width(rows, 7, self.type)
        found = []
        for image in range(int(rows[:, 0].max(initial=0)) + 1 if batch is None else batch):
            own = rows[rows[:, 0] == image]
            own = own[np.argsort(-own[:, 2], kind="stable")]
            found.append(Detections(own[:, 3:], own[:, 2], own[:, 1].astype(np.int64)))
        return found


#: Decoders that give candidates, and the one whose file has suppressed them.
Decoder = YoloV3Decoder | YoloXDecoder | DflDecoder | SsdDecoder | BoxesDecoder | RowsDecoder
_TYPE: Any = Annotated[Decoder, Field(discriminator="type")]  # no type in mypy's eyes
_ADAPTER: TypeAdapter[Decoder] = TypeAdapter(_TYPE)


def decoder_to_json(decoder: Decoder) -> dict[str, Any]:
    """Plain mapping, ``type`` first, that :func:`decoder_from` reads again."""
    values = asdict(decoder)
    return {"type": values.pop("type"), **_plain(values)}


def decoder_from(values: Mapping[str, Any]) -> Decoder:
    """Decoder of a mapping such as ``{type: yolox, num_classes: 80}``.

    Raises:
        ConfigError: an unknown type, or a value that does not fit.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"][1:])) or "type"
        raise ConfigError(f"decoder: {where} {in_words(first)}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
