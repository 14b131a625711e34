"""Segmentation and classification metrics from streaming counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quantrim.errors import ModelError


@dataclass
class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over a data set.

    Attributes:
        num_classes: number of classes.
        ignore_index: label that is left out.
        counts: int64[num_classes, num_classes], truth in rows, prediction in columns.
    """

    num_classes: int
    ignore_index: int = 255
    counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Count one batch.

        Args:
            predicted: classes, any integer dtype, shape of ``truth``.
            truth: labels; ``ignore_index`` is skipped.

        Raises:
            ValueError: shapes differ, or a label is no class.
        """
        if predicted.shape != truth.shape:
            raise ValueError(f"prediction has shape {predicted.shape}, labels {truth.shape}")
        kept = truth != self.ignore_index
        rows, columns = truth[kept].astype(np.int64), predicted[kept].astype(np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.num_classes:
            raise ValueError(f"label {rows.max()} is not below num_classes={self.num_classes}")
        pairs = np.bincount(rows * self.num_classes + columns, minlength=self.num_classes**2)
        self.counts += pairs.reshape(self.counts.shape)

    def metrics(self) -> dict[str, float | list[float]]:
        """mIoU, accuracy, kappa, Dice and per-class values.

        "mIoU" counts a class that never occurs, neither in labels nor in predictions, as 0, as PaddleSeg
        does; "mIoU_present" leaves it out. "class_precision" is what PaddleSeg calls class accuracy.
        """
        counts = self.counts.astype(np.float64)
        hit, truth, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
        union, total = truth + predicted - hit, max(counts.sum(), 1.0)
        iou = hit / np.maximum(union, 1)
        present = union > 0
        accuracy = hit.sum() / total
        chance = float((truth * predicted).sum()) / total**2
        return {
            "mIoU": float(iou.mean()),
            "mIoU_present": float(iou[present].mean()) if present.any() else 0.0,
            "accuracy": float(accuracy),
            "kappa": float((accuracy - chance) / (1 - chance)) if chance < 1 else 1.0,
            "dice": float((2 * hit / np.maximum(truth + predicted, 1)).mean()),
            "class_iou": iou.tolist(),
            "class_precision": (hit / np.maximum(predicted, 1)).tolist(),
            "class_recall": (hit / np.maximum(truth, 1)).tolist(),
        }


def require_answers(scores: np.ndarray, seen: int = 0) -> np.ndarray:
    """The scores, none of which is NaN: an arg max of NaN is class 0, and would be counted.

    Args:
        scores: of a batch, images first.
        seen: images before this batch.

    Raises:
        ModelError: a score is NaN, or all scores of an image are infinite.
    """
    rows = scores.reshape(len(scores), -1)
    if np.issubdtype(scores.dtype, np.floating):
        lost = np.isnan(rows).any(axis=1) | np.isposinf(rows).any(axis=1)
        if lost.any():
            raise ModelError(
                f"the model's outputs are NaN or infinite for image {seen + int(lost.argmax())}; check its "
                "weights and the images."
            )
    return scores


@dataclass
class TopK:
    """Share of samples whose label is among the k highest logits; every sample weighs the same.

    Attributes:
        ks: the k to count.
        hits: correct samples for each k.
        samples: samples seen.
    """

    ks: Sequence[int] = (1, 5)
    hits: dict[int, int] = field(init=False)
    samples: int = 0

    def __post_init__(self) -> None:
        self.hits = dict.fromkeys(self.ks, 0)

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count one batch: logits (N, C), labels (N,)."""
        order = np.argsort(-logits, axis=1, kind="stable")
        for k in self.ks:
            self.hits[k] += int((order[:, :k] == labels[:, None]).any(axis=1).sum())
        self.samples += len(labels)

    def metrics(self) -> dict[str, float | list[float]]:
        """``top1``, ``top5``, ... in 0..1."""
        return {f"top{k}": hits / max(self.samples, 1) for k, hits in self.hits.items()}
