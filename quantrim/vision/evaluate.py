"""Metrics of a model on a data set: torch weights and files on engines go through the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantrim.engines import Session
from quantrim.errors import DataError
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.data.sample import Sample, undo
from quantrim.vision.metrics import ConfusionMatrix, TopK

#: Batch of images, float32 (N, C, H, W) → logits (N, classes, ...).
Predict = Callable[[np.ndarray], np.ndarray]


def torch_predictor(model: nn.Module) -> Predict:
    """Predictor of a module's first output, in eval mode, on the device its weights are on."""
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        outputs = model(torch.from_numpy(images).to(device))
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        return first.float().cpu().numpy()

    return predict


def engine_predictor(session: Session) -> Predict:
    """Predictor of a session's first output; a fixed batch is filled up and cut again."""
    port, output = session.inputs[0], session.outputs[0].name
    fixed = port.shape[0]

    def predict(images: np.ndarray) -> np.ndarray:
        if fixed is None or fixed == len(images):
            return session.run({port.name: images})[output]
        made = []
        for start in range(0, len(images), fixed):
            part = images[start : start + fixed]
            full = np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)])
            made.append(session.run({port.name: full})[output][: len(part)])
        return np.concatenate(made)

    return predict


def evaluate(
    predict: Predict, data: VisionData, *, batch_size: int = 8, limit: int | None = None
) -> dict[str, float | list[float]]:
    """Metrics over a data set; for segmentation, predictions are brought back to the label's size.

    Args:
        predict: images → logits, or classes where the file ends with arg max.
        data: pictures with the transforms of validation.
        batch_size: pictures of equal size that are predicted together.
        limit: use the first so many pictures.

    Returns:
        Keys of :class:`ConfusionMatrix` or :class:`TopK`, and ``images``.

    Raises:
        DataError: the data set is empty.
    """
    count = min(len(data), limit or len(data))
    if count == 0:
        raise DataError("the data set to evaluate on is empty.")
    counter: ConfusionMatrix | TopK = (
        ConfusionMatrix(data.num_classes, data.ignore_index) if data.task == "segmentation" else TopK()
    )
    for group in _groups(data, count, batch_size):
        images = np.stack([sample.image.transpose(2, 0, 1) for sample, _ in group])
        scores = predict(np.ascontiguousarray(images, np.float32))
        if isinstance(counter, TopK):
            counter.add(scores, np.array([int(truth) for _, truth in group]))
            continue
        for (sample, truth), one in zip(group, scores, strict=True):
            counter.add(classes_of(one, sample), np.asarray(truth))
    return {**counter.metrics(), "images": float(count)}


def _groups(data: VisionData, count: int, batch_size: int) -> Iterator[list[tuple[Sample, np.ndarray | int]]]:
    group: list[tuple[Sample, np.ndarray | int]] = []
    for index in range(count):
        sample, truth = data.sample(index)
        if group and (len(group) == batch_size or group[0][0].image.shape != sample.image.shape):
            yield group
            group = []
        group.append((sample, truth))
    if group:
        yield group


def classes_of(scores: np.ndarray, sample: Sample) -> np.ndarray:
    """Class of each pixel of the original picture, from logits (C, h, w) or classes (h, w)."""
    if np.issubdtype(scores.dtype, np.integer):
        wide = undo(scores.reshape(1, *scores.shape[-2:]).astype(np.float32), sample.steps)
        return np.rint(wide[0]).astype(np.int64)
    return undo(scores, sample.steps).argmax(axis=0)


def multi_scale(
    predict: Predict, scales: Sequence[float], *, flip: bool = False, multiple: int = 32
) -> Predict:
    """Sum of soft-max scores over scaled (always from the original picture) and mirrored copies."""

    def combined(images: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(images)
        height, width = tensor.shape[-2:]
        total = torch.zeros(())
        for scale in scales:
            size = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
            scaled = nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
            for mirrored in (False, True) if flip else (False,):
                view = scaled.flip(3) if mirrored else scaled
                scores = torch.from_numpy(predict(np.ascontiguousarray(view.numpy()))).softmax(dim=1)
                scores = scores.flip(3) if mirrored else scores
                total = total + nn.functional.interpolate(scores, size=(height, width), mode="bilinear")
        return total.numpy()

    return combined


def sliding_window(predict: Predict, crop: tuple[int, int], stride: tuple[int, int]) -> Predict:
    """Mean of the logits of overlapping crops; ``crop`` and ``stride`` are (width, height)."""

    def combined(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[-2:]
        columns, rows = (
            sorted({*range(0, max(1, size - c), s), max(0, size - c)})
            for size, c, s in zip((width, height), crop, stride, strict=True)
        )
        total: Any = 0
        count = np.zeros((height, width), np.float32)
        for top in rows:
            for left in columns:
                window = (..., slice(top, top + crop[1]), slice(left, left + crop[0]))
                scores = predict(np.ascontiguousarray(images[window]))
                if np.isscalar(total):
                    total = np.zeros((*scores.shape[:2], height, width), np.float32)
                total[window] += scores
                count[window] += 1
        return total / count

    return combined


def read_binary(path: str | Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of seed 001's binary format, mapped, not read.

    Little-endian int64 N; N x float32 (C, H, W); N x int64 labels.

    Args:
        path: the file.
        shape: (C, H, W) of an image.

    Raises:
        DataError: the size does not fit the head.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size < 8:
        raise DataError(f"{path}: no such binary data file, or an empty one.")
    count = int(np.fromfile(path, "<i8", 1)[0])
    expected = 8 + count * (4 * int(np.prod(shape)) + 8)
    if count < 0 or path.stat().st_size != expected:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes, but {count} images of {'x'.join(map(str, shape))} need "
            f"{expected}. The file is truncated, or its images have another shape."
        )
    images = np.memmap(path, "<f4", "r", 8, (count, *shape))
    labels = np.memmap(path, "<i8", "r", 8 + images.nbytes, (count,))
    return images, labels


def write_binary(path: str | Path, data: VisionData) -> int:
    """Write a classification set in that format, one image at a time; the number written."""
    from quantrim.files import atomic_path

    labels = []
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.array([len(data)], "<i8").tofile(file)
        for index in range(len(data)):
            sample, truth = data.sample(index)
            np.ascontiguousarray(sample.image.transpose(2, 0, 1), "<f4").tofile(file)
            labels.append(int(truth))
        np.array(labels, "<i8").tofile(file)
    return len(data)


def evaluate_binary(
    predict: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 50,
    skip_batch_num: int = 0,
    batch_num: int = 0,
) -> dict[str, float]:
    """Top-1/top-5 over a binary set, and latency without the first ``skip_batch_num`` batches.

    Args:
        predict: images → logits.
        images: float32 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images a batch; the last, smaller one counts by its images.
        skip_batch_num: warm-up batches left out of the latency, kept in the accuracy.
        batch_num: batches to use; 0 for all.
    """
    import time

    counter, seconds, timed = TopK(), 0.0, 0
    starts = range(0, len(labels), batch_size)
    for number, start in enumerate(starts[: batch_num or None]):
        batch = np.ascontiguousarray(images[start : start + batch_size])
        begin = time.perf_counter()
        logits = predict(batch)
        if number >= skip_batch_num:
            seconds, timed = seconds + time.perf_counter() - begin, timed + len(batch)
        counter.add(logits, np.asarray(labels[start : start + batch_size]))
    rate = timed / seconds if seconds else 0.0
    metrics = {key: float(value) for key, value in counter.metrics().items()}  # type: ignore[arg-type]
    return {**metrics, "images": float(counter.samples), "images_per_second": rate}
