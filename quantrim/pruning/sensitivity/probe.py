"""A small fixed set of samples, and what each of them loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

from quantrim.errors import ModelError
from quantrim.modules import in_mode

#: Loss of each sample, float64[samples].
Losses = NDArray[np.float64]
#: Label of pixels about which nothing is known, where there are no more classes than that.
_UNKNOWN = 255


def cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    """Mean cross entropy of each sample.

    Args:
        outputs: logits (N, C, ...), or a list or mapping of them whose first counts.
        target: class numbers (N, ...), 255 where nothing is known.

    Returns:
        float[N].
    """
    logits = first_tensor(outputs)
    known = _known(logits, target)
    labels = target.long().masked_fill(~known, -100)
    return _mean_of(F.cross_entropy(logits, labels, ignore_index=-100, reduction="none"), known)


def error_rate(outputs: Any, target: Tensor) -> Tensor:
    """Share of wrong classes of each sample: 0 or 1 for an image's class, of the pixels for its segmentation.

    Args:
        outputs: logits (N, C, ...), or a list or mapping of them whose first counts.
        target: class numbers (N, ...), 255 where nothing is known.

    Returns:
        float[N].
    """
    logits = first_tensor(outputs)
    return _mean_of(logits.argmax(1).ne(target).float(), _known(logits, target))


def iou_loss(outputs: Any, target: Tensor) -> Tensor:
    """One minus the mean intersection over union of the classes that a sample or its prediction shows.

    Args:
        outputs: logits (N, C, ...), or a list or mapping of them whose first counts.
        target: class numbers (N, ...), 255 where nothing is known.

    Returns:
        float[N].
    """
    logits = first_tensor(outputs)
    classes, known = logits.shape[1], _by_sample(_known(logits, target))
    found, wanted = _by_sample(logits.argmax(1)), _by_sample(target.long())
    losses = []
    for one, other, counts in zip(found, wanted, known, strict=True):
        pairs = torch.bincount(other[counts] * classes + one[counts], minlength=classes**2)
        table = pairs.reshape(classes, classes).double()
        union = table.sum(0) + table.sum(1) - table.diagonal()
        losses.append(1 - (table.diagonal() / union)[union > 0].mean() if counts.any() else table.new_zeros(()))
    return torch.stack(losses)


def mean_cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy of a module on a batch of inputs and class numbers, with gradients; a scalar."""
    inputs, target = batch
    return cross_entropy(module(inputs), target).mean()


def divergence(outputs: Any, reference: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each sample's outputs from reference logits; needs no labels.

    Args:
        outputs: logits (N, C, ...), or a list or mapping of them whose first counts.
        reference: logits of the unpruned model, of the same shape.

    Returns:
        float[N].
    """
    ours, theirs = F.log_softmax(first_tensor(outputs), 1), F.log_softmax(reference, 1)
    return _by_sample(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)).mean(1)


def first_tensor(outputs: Any) -> Tensor:
    """The first tensor of whatever a model returns."""
    return next(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def _known(logits: Tensor, target: Tensor) -> Tensor:
    """Where the class is known."""
    return target != _UNKNOWN if logits.shape[1] <= _UNKNOWN else torch.ones_like(target, dtype=torch.bool)


def _mean_of(values: Tensor, known: Tensor) -> Tensor:
    """Mean of each sample over what is known."""
    counts = _by_sample(known)
    return (_by_sample(values) * counts).sum(1) / counts.sum(1).clamp_min(1)


def _by_sample(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


@dataclass(frozen=True, slots=True)
class Probe:
    """A small fixed set on which losses are compared.

    Attributes:
        batches: pairs of inputs (N, ...) and targets; any iterable, which is read once.
        losses: outputs and targets → loss of each sample, of each of its pixels, or of the whole batch, which
            is then asked sample by sample. Any callable; one that can be pickled where the work is spread over
            processes.
    """

    batches: tuple[tuple[Tensor, Tensor], ...]
    losses: Callable[[Any, Tensor], Tensor] = cross_entropy

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", tuple(self.batches))

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(len(inputs) for inputs, _ in self.batches)

    def losses_of(self, outputs: Any, target: Tensor) -> Tensor:
        """Loss of each sample of a batch, float[N].

        Args:
            outputs: what a model returned for the batch.
            target: its targets (N, ...).

        Raises:
            ModelError: ``losses`` returns no tensor, or one that is not made of samples.
        """
        found, count = self.losses(outputs, target), len(target)
        if isinstance(found, Tensor) and found.ndim == 0 and count > 1:
            samples = range(count)
            found = torch.stack([self.losses(_sample(outputs, i), target[i : i + 1]) for i in samples])
        if not isinstance(found, Tensor) or found.numel() % max(1, count) or not found.numel():
            raise ModelError(
                f"the probe's losses give {_shape_of(found)} for {count} samples. Return one loss for each "
                'sample, such as torch.nn.CrossEntropyLoss(reduction="none") does.',
                field="losses",
            )
        return found.reshape(count, -1).mean(1)


def _sample(outputs: Any, index: int) -> Any:
    """One sample of a model's outputs, as a batch of one."""
    return tree_map_only(Tensor, lambda tensor: tensor[index : index + 1] if tensor.ndim else tensor, outputs)


def _shape_of(found: Any) -> str:
    return f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def probe_without_labels(module: nn.Module, inputs: Iterable[Tensor]) -> Probe:
    """Probe that asks how far outputs move from those of the unpruned model."""
    with in_mode(module, training=False), torch.no_grad():
        batches = [(batch, first_tensor(module(batch)).clone()) for batch in inputs]
    return Probe(tuple(batches), divergence)


def direct_losses(module: nn.Module, probe: Probe) -> Losses:
    """Loss of each sample, by the module's own forward."""
    with torch.no_grad():
        return joined_losses(probe.losses_of(module(inputs), target) for inputs, target in probe.batches)


def joined_losses(parts: Iterable[Tensor]) -> Losses:
    """Losses of several batches as one array; what is not finite counts as very bad.

    Raises:
        ModelError: there is no batch.
    """
    collected = [part.detach().double().cpu().numpy() for part in parts]
    if not collected:
        raise ModelError("the probe has no batch; pass at least one.")
    return np.asarray(np.nan_to_num(np.concatenate(collected), nan=1e4, posinf=1e4, neginf=-1e4))
