"""Predictions of images on this disk: classes, masks or boxes, by weights or by a file on an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from quantrim.detection import Decoder, Detections, Thresholds, detect
from quantrim.errors import ConfigError
from quantrim.files import atomic_path, write_json
from quantrim.graph.feeds import image_files
from quantrim.images import read_image
from quantrim.scratch import claiming
from quantrim.vision.data.sample import Sample, Transform, apply, classes_of, undo_boxes
from quantrim.vision.palette import PALETTE

#: Batch of images, float32 (N, C, H, W) → all outputs of the model.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """How images become predictions, and where these go.

    Attributes:
        task: "segmentation", "classification" or "detection".
        transforms: preprocessing.
        class_names: names for the classes.
        channels: 1 or 3.
        palette: colours of the classes, uint8 (256, 3).
        decoder: of a detector's outputs.
        thresholds: which boxes are told.
    """

    task: str
    transforms: Sequence[Transform]
    class_names: Sequence[str] = ()
    channels: int = 3
    palette: np.ndarray = field(default_factory=lambda: PALETTE)
    decoder: Decoder | None = None
    thresholds: Thresholds = field(default_factory=lambda: Thresholds(score=0.25))

    def __post_init__(self) -> None:
        if self.task == "detection" and self.decoder is None:
            raise ConfigError("detection needs Deploy.decoder, such as {type: yolox, num_classes: 80}.")


@dataclass(frozen=True, slots=True)
class _Item:
    """An image on its way through the model."""

    path: Path
    image: np.ndarray
    sample: Sample


@claiming
def predict_files(
    run: Run, source: str | Path, how: Prediction, save_dir: str | Path, *, batch_size: int = 1
) -> tuple[list[dict[str, Any]], list[float]]:
    """Predict images, those of equal size together.

    Segmentation writes ``added_prediction/`` (overlay) and ``pseudo_color_prediction/`` (palette PNG whose
    indices are the classes), detection ``added_prediction/`` with boxes, in the folders that the images have
    below the source.

    Args:
        run: images → outputs.
        source: image, folder, or list file.
        how: task, preprocessing and names.
        save_dir: where images go.
        batch_size: images in a batch.

    Returns:
        One entry an image: path, and classes with probabilities, shares of the area, or boxes; and the time of
        the model alone, ms an image, one value a batch.
    """
    results: list[dict[str, Any]] = []
    times: list[float] = []
    for group in _groups(_items(source, how), batch_size):
        images = np.stack([item.sample.image.transpose(2, 0, 1) for item in group])
        begun = time.perf_counter()
        outputs = run(np.ascontiguousarray(images, np.float32))
        times.append((time.perf_counter() - begun) * 1e3 / len(group))
        for item, told in zip(group, _told(outputs, group, how), strict=True):
            results.append({"image": str(item.path), **_shown(told, item, how, Path(save_dir), Path(source))})
    return results, times


def _items(source: str | Path, how: Prediction) -> Iterator[_Item]:
    generator = np.random.default_rng(0)
    for path in image_files(Path(source)):
        image = read_image(path)
        shown = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None] if how.channels == 1 else image
        yield _Item(path, image, apply(how.transforms, Sample(shown.astype(np.float32)), generator))


def _groups(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    group: list[_Item] = []
    for item in items:
        if group and (len(group) == size or group[0].sample.image.shape != item.sample.image.shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _told(outputs: Sequence[np.ndarray], group: Sequence[_Item], how: Prediction) -> Sequence[Any]:
    """What the model says of each image: rows of the first output, or boxes."""
    if how.decoder is None:
        return list(outputs[0])
    height, width = group[0].sample.image.shape[:2]
    return detect(how.decoder, outputs, (height, width), how.thresholds, len(group))


def _shown(told: Any, item: _Item, how: Prediction, save_dir: Path, source: Path) -> dict[str, Any]:
    if isinstance(told, Detections):
        height, width = item.sample.image.shape[:2]
        found = replace(told, boxes=undo_boxes(told.boxes, item.sample.steps, (height, width)))
        shown = boxed(item.image, found, how.class_names, how.palette)
        _save(save_dir / "added_prediction" / _below(item.path, source), shown)
        rows = zip(found.labels, found.scores, found.boxes, strict=True)
        return {
            "boxes": [
                {
                    "class": _class_name(int(label), how.class_names),
                    "index": int(label),
                    "score": float(score),
                    "box": box.tolist(),
                }
                for label, score, box in rows
            ]
        }
    if how.task == "classification":
        return {"classes": ranked(told, how.class_names)}
    classes = classes_of(told, item.sample)
    write_prediction(item.image, classes, save_dir, _below(item.path, source), how.palette)
    shares = np.bincount(classes.ravel(), minlength=1) / classes.size
    return {"area": {_class_name(i, how.class_names): float(share) for i, share in enumerate(shares) if share}}


def write_boxes(results: Sequence[Mapping[str, Any]], save_dir: Path) -> Path:
    """Write what :func:`predict_files` told of a detector in COCO's result format.

    Args:
        results: images count from 1 in their order, classes from 1 in theirs; each entry names its file, too.
        save_dir: gets ``coco_results.json``.
    """
    entries = [
        {
            "image_id": number,
            "category_id": box["index"] + 1,
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(box["score"], 6),
            "file_name": result["image"],
        }
        for number, result in enumerate(results, 1)
        for box in result["boxes"]
        for x1, y1, x2, y2 in [box["box"]]
    ]
    path = save_dir / "coco_results.json"
    write_json(path, entries)
    return path


def _below(path: Path, source: Path) -> Path:
    """Where an image lies below the folder, or the folder of the list file, that it came from."""
    folder = (source if source.is_dir() else source.parent).resolve()
    path = path.resolve()  # a list may name images as ../a.png
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def palette_of(colors: Sequence[float]) -> np.ndarray:
    """Colours of the first classes in place of the usual ones.

    Args:
        colors: red, green and blue of each class, 0 to 255, one after the other.

    Raises:
        ConfigError: not three whole numbers a class.
    """
    legal = len(colors) % 3 == 0 and 0 < len(colors) <= PALETTE.size
    if not legal or any(value != int(value) or not 0 <= value <= 255 for value in colors):
        raise ConfigError(
            f"custom_color has {len(colors)} values; give red, green and blue, 0 to 255, of each class.",
            field="custom_color",
        )
    palette = PALETTE.copy()
    palette[: len(colors) // 3] = np.array(colors, np.uint8).reshape(-1, 3)
    return palette


def write_prediction(
    image: np.ndarray, classes: np.ndarray, save_dir: Path, name: Path, palette: np.ndarray = PALETTE
) -> None:
    """Overlay (60 % image, 40 % colour) and palette image of a prediction."""
    indices = (classes % len(palette)).astype(np.uint8)
    colors = Image.fromarray(indices).convert("P")
    colors.putpalette(palette.tobytes())
    _save(save_dir / "added_prediction" / name, Image.fromarray(overlaid(image, indices, palette)))
    _save(save_dir / "pseudo_color_prediction" / name, colors)


def _save(path: Path, image: Image.Image) -> None:
    with atomic_path(path.with_suffix(".png")) as temporary:
        image.save(temporary)


def overlaid(image: np.ndarray, classes: np.ndarray, palette: np.ndarray = PALETTE) -> np.ndarray:
    """60 % image and 40 % the colours of the classes, uint8 (H, W, 3)."""
    return (0.6 * image + 0.4 * palette[classes.astype(np.int64) % len(palette)]).astype(np.uint8)


def boxed(
    image: np.ndarray, found: Detections, names: Sequence[str] = (), palette: np.ndarray = PALETTE
) -> Image.Image:
    """The image, uint8 (H, W, 3), with each box, its class and score in the class's colour; the best on top."""
    canvas = np.array(image, np.uint8, order="C")
    thick, size = max(1, round(max(canvas.shape[:2]) / 300)), max(0.35, max(canvas.shape[:2]) / 1200)
    font = cv2.FONT_HERSHEY_SIMPLEX
    for place in reversed(range(len(found))):
        label = int(found.labels[place])
        color = [int(value) for value in palette[(label + 1) % len(palette)]]
        left, top, right, bottom = (round(float(edge)) for edge in found.boxes[place])
        cv2.rectangle(canvas, (left, top), (right, bottom), color, thick)
        text = f"{_class_name(label, names)} {found.scores[place]:.2f}"
        (width, height), below = cv2.getTextSize(text, font, size, 1)
        foot = max(top, height + below)
        cv2.rectangle(canvas, (left, foot - height - below), (left + width, foot), color, -1)
        cv2.putText(canvas, text, (left, foot - below // 2), font, size, (255, 255, 255), 1, cv2.LINE_AA)
    return Image.fromarray(canvas)


def ranked(scores: np.ndarray, names: Sequence[str], count: int = 5) -> list[Mapping[str, Any]]:
    """The likeliest classes of logits (classes,), with their soft-max probabilities; or the one class told."""
    if np.issubdtype(scores.dtype, np.integer):
        return [{"class": _class_name(int(scores.reshape(-1)[0]), names), "probability": 1.0}]
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    order = np.argsort(-shares)[:count]
    return [{"class": _class_name(int(i), names), "probability": float(shares[i])} for i in order]


def _class_name(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else str(index)
