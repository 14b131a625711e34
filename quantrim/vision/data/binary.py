"""Classification data in one binary file, and a model's accuracy and pace on it.

The format of oneDNN's INT8 demos (Paddle's full_ILSVRC2012_val_preprocess.py), little-endian: int64 N, then
N x float32 (C, H, W), then N x int64 labels. It holds pictures ready for the model, so that nothing but the
model is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.errors import DataError
from quantrim.files import atomic_path
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.metrics import TopK, require_answers
from quantrim.vision.views import Predict

#: Images and labels of a batch → top-1 and top-5, in 0..1.
Layer = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


def read_binary(path: str | Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, mapped, not read.

    Args:
        path: the file.
        shape: (C, H, W) of an image.

    Returns:
        float32 (N, C, H, W) and int64 (N,).

    Raises:
        DataError: the size does not fit the head.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size < 8:
        raise DataError(f"{path}: no such binary data file, or an empty one.")
    count = int(np.fromfile(path, "<i8", 1)[0])
    expected = 8 + count * (4 * int(np.prod(shape)) + 8)
    if count < 1 or path.stat().st_size != expected:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes, but {count} images of {'x'.join(map(str, shape))} need "
            f"{expected}. The file is truncated, empty, or its images have another shape."
        )
    images = np.memmap(path, "<f4", "r", 8, (count, *shape))
    labels = np.memmap(path, "<i8", "r", 8 + images.nbytes, (count,))
    return images, labels


def write_binary(path: str | Path, data: VisionData, limit: int | None = None) -> tuple[int, ...]:
    """Write a classification set, one image at a time.

    Args:
        path: the file; it appears when it is whole.
        data: pictures with the transforms of validation.
        limit: write the first so many; all by default.

    Returns:
        Shape (N, C, H, W) of what was written.

    Raises:
        DataError: it is no classification set, it is empty, or its images differ in shape.
    """
    if data.task != "classification":
        raise DataError("the binary format holds one label an image; this is a segmentation set.")
    count = min(len(data), limit or len(data))
    shape: tuple[int, ...] | None = None
    labels = []
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.array([count], "<i8").tofile(file)
        for index in range(count):
            sample, truth = data.sample(index)
            image = np.ascontiguousarray(sample.image.transpose(2, 0, 1), "<f4")
            shape = image.shape if shape is None else shape
            if image.shape != shape:
                raise DataError(
                    f"image {index} has shape {image.shape}, image 0 {shape}; the binary format holds equal "
                    "shapes. Add Resize or CenterCrop to the transforms."
                )
            image.tofile(file)
            labels.append(truth)
        if shape is None:
            raise DataError("the data set to write is empty.")
        np.array(labels, "<i8").tofile(file)
    return (count, *shape)


def evaluate_binary(
    predict: Predict | None,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 50,
    skip_batch_num: int = 0,
    batch_num: int = 0,
    layer: Layer | None = None,
    on_batch: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Top-1/top-5 over a binary set, and latency without the first ``skip_batch_num`` batches.

    Args:
        predict: images → logits; None with ``layer``.
        images: float32 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images a batch; the last, smaller one counts by its images.
        skip_batch_num: warm-up batches left out of the latency, kept in the accuracy.
        batch_num: batches to use; 0 for all.
        layer: instead of ``predict``: images and labels → top-1 and top-5 of the batch, by the model itself.
        on_batch: gets a line about each batch.

    Returns:
        top1, top5, images, and where a batch was timed, images_per_second and, of medians over batches,
        latency_ms of an image and batch_latency_ms.

    Raises:
        DataError: a label is no class of the model, or an image holds NaN.
        ModelError: the model answers with NaN.
    """
    tally = _Tally(predict, layer)
    seconds: list[float] = []
    sizes: list[int] = []
    starts = range(0, len(labels), batch_size)
    for number, start in enumerate(starts[: batch_num or None]):
        batch = np.ascontiguousarray(images[start : start + batch_size])
        _require_numbers(batch, start)
        took = tally.add(batch, np.asarray(labels[start : start + batch_size]), start)
        if number >= skip_batch_num:
            seconds.append(took)
            sizes.append(len(batch))
        if on_batch is not None:
            warm = "" if number >= skip_batch_num else " (warm-up)"
            on_batch(f"batch {number}: {1e3 * took / len(batch):.3f} ms an image, {tally.line}{warm}")
    metrics: dict[str, Any] = tally.metrics()
    if seconds:
        metrics["images_per_second"] = sum(sizes) / sum(seconds)
        metrics["latency_ms"] = 1e3 * float(np.median(np.divide(seconds, sizes)))
        metrics["batch_latency_ms"] = 1e3 * float(np.median(seconds))
    return metrics


class _Tally:
    """Top-1 and top-5 so far, counted here or by the model's own accuracy layer, weighted by images."""

    def __init__(self, predict: Predict | None, layer: Layer | None) -> None:
        self.predict, self.layer = predict, layer
        self.counter, self.shares, self.images = TopK(), np.zeros(2), 0

    def add(self, images: np.ndarray, labels: np.ndarray, start: int) -> float:
        """Judge a batch; seconds that the model took."""
        begin = time.perf_counter()
        if self.layer is not None:
            found = self.layer(images, labels)
            took = time.perf_counter() - begin
            self.shares += np.array(found) * len(labels)
        else:
            assert self.predict is not None
            logits = self.predict(images)
            took = time.perf_counter() - begin
            _check_labels(require_answers(logits, start), labels)
            self.counter.add(logits, labels)
        self.images += len(labels)
        return took

    def metrics(self) -> dict[str, Any]:
        """Of all batches so far."""
        if self.layer is None:
            return {**self.counter.metrics(), "images": float(self.images)}
        top1, top5 = (self.shares / max(1, self.images)).tolist()
        return {"top1": top1, "top5": top5, "images": float(self.images)}

    @property
    def line(self) -> str:
        """``top1 0.7312, top5 0.9310 of 100 images``."""
        found = self.metrics()
        return f"top1 {found['top1']:.4f}, top5 {found['top5']:.4f} of {self.images} images"


def _require_numbers(images: np.ndarray, seen: int) -> None:
    lost = ~np.isfinite(images.reshape(len(images), -1)).all(axis=1)
    if lost.any():
        raise DataError(f"image {seen + int(lost.argmax())} of the binary data holds NaN or infinite values.")


def _check_labels(logits: np.ndarray, labels: np.ndarray) -> None:
    if logits.ndim != 2 or not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise DataError(
            f"labels {labels.min()} to {labels.max()} don't fit outputs of shape {logits.shape}. The model "
            "must give one row of logits an image."
        )
