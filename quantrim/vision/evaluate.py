"""Metrics of a model on a data set: torch weights and files on engines go through the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from quantrim.engines import Session
from quantrim.errors import DataError, ModelError
from quantrim.vision.data.datasets import Truth, VisionData
from quantrim.vision.data.sample import Sample, classes_of
from quantrim.vision.metrics import ConfusionMatrix, TopK, require_answers
from quantrim.vision.views import Predict


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


def accuracy_layer(session: Session) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
    """Images and labels → top-1 and top-5 of the batch, as a model that ends with an accuracy layer says.

    Raises:
        ModelError: the model does not take images and integer labels, or returns fewer than two single values.
    """
    images = [port for port in session.inputs if len(port.shape) == 4]
    labels = [port for port in session.inputs if np.issubdtype(port.dtype, np.integer)]
    if len(session.inputs) != 2 or len(images) != 1 or len(labels) != 1:
        raise ModelError(
            "an accuracy layer needs a model of one image input and one integer label input; this one takes "
            f"{', '.join(port.name for port in session.inputs)}. Leave the accuracy layer out."
        )
    (image,), (label,) = images, labels

    def judge(batch: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        shaped = truth.astype(label.dtype).reshape(-1, *(1,) * (len(label.shape) - 1))
        outputs = session.run({image.name: batch, label.name: shaped}).values()
        scalars = [float(value.reshape(-1)[0]) for value in map(np.asarray, outputs) if value.size == 1]
        if len(scalars) < 2:
            raise ModelError(
                f"accuracy layer: the model has {len(scalars)} outputs with a single value; it needs top-1 and "
                "top-5."
            )
        return scalars[-2], scalars[-1]

    return judge


def evaluate(
    predict: Predict,
    data: VisionData,
    *,
    batch_size: int = 8,
    limit: int | None = None,
    seed: int | None = None,
) -> dict[str, float | list[float]]:
    """Metrics over a data set; for segmentation, predictions are brought back to the label's size.

    Args:
        predict: images → logits, or classes where the file ends with arg max.
        data: pictures with the transforms of validation.
        batch_size: pictures of equal size that are predicted together.
        limit: use so many pictures, the first ones.
        seed: draw these pictures at random instead.

    Returns:
        Keys of :class:`ConfusionMatrix` or :class:`TopK`, and ``images``.

    Raises:
        DataError: the data set is empty.
        ModelError: the model has other classes than the data set.
    """
    count = min(len(data), limit or len(data))
    if count == 0:
        raise DataError("the data set to evaluate on is empty.")
    counter: ConfusionMatrix | TopK = (
        ConfusionMatrix(data.num_classes, data.ignore_index) if data.task == "segmentation" else TopK()
    )
    chosen: Sequence[int] = range(count)
    if seed is not None:
        chosen = sorted(np.random.default_rng(seed).choice(len(data), count, replace=False).tolist())
    for group in sample_groups(data, chosen, batch_size):
        images = np.stack([sample.image.transpose(2, 0, 1) for sample, _ in group])
        scores = require_answers(predict(np.ascontiguousarray(images, np.float32)))
        _require_classes(scores, data)
        if isinstance(counter, TopK):
            counter.add(scores, np.array([truth for _, truth in group], np.int64))
            continue
        for (sample, truth), one in zip(group, scores, strict=True):
            counter.add(classes_of(one, sample), np.asarray(truth))
    return {**counter.metrics(), "images": float(count)}


def _require_classes(scores: np.ndarray, data: VisionData) -> None:
    """Metrics of other classes would be nonsense, or an error deep inside."""
    integers = np.issubdtype(scores.dtype, np.integer)
    found = int(scores.max(initial=0)) + 1 if integers else scores.shape[1]
    if found > data.num_classes or (found < data.num_classes and not integers):
        raise ModelError(
            f"the model tells {found} classes apart, the data set has {data.num_classes}. Evaluate it on its "
            "own data, or set num_classes."
        )


def sample_groups(
    data: VisionData, chosen: Sequence[int], batch_size: int
) -> Iterator[list[tuple[Sample, Truth]]]:
    """Samples with their truth, in batches of equal shape."""
    group: list[tuple[Sample, Truth]] = []
    for index in chosen:
        sample, truth = data.sample(index)
        if group and (len(group) == batch_size or group[0][0].image.shape != sample.image.shape):
            yield group
            group = []
        group.append((sample, truth))
    if group:
        yield group
