"""How much each unit of a group matters; larger is more.

A unit reaches over several layers, and each criterion says which of its entries count. Scores are compared
within a group; across groups only those of "taylor" and "fisher" are, which estimate a change of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from quantrim.errors import ConfigError, did_you_mean
from quantrim.modules import in_mode
from quantrim.pruning.groups.groups import ChannelGroup
from quantrim.pruning.groups.walk import Member

Criterion = Literal["l1", "l2", "fpgm", "bn_scale", "taylor", "fisher", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
#: Criteria that need examples and a loss.
DATA_DRIVEN = ("taylor", "fisher")

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Examples:
    """Data for criteria that need gradients.

    Attributes:
        batches: anything that ``loss`` understands; what can be read only once, as a generator, is kept.
        loss: scalar loss of a module on a batch, with gradients; the mean where a batch has several samples.
    """

    batches: Iterable[Any]
    loss: Callable[[nn.Module, Any], Tensor]

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            object.__setattr__(self, "batches", tuple(self.batches))

    def samples(self) -> Iterator[Any]:
        """Batches of one sample each; a batch whose tensors differ in their first size stays whole."""
        for batch in self.batches:
            counts = {len(leaf) if leaf.ndim else 0 for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}
            if len(counts) != 1 or 0 in counts:
                yield batch
                continue
            for index in range(counts.pop()):
                yield _sample(batch, index)


def _sample(batch: Any, index: int) -> Any:
    """One sample of a batch, as a batch of one."""
    return tree_map_only(Tensor, lambda tensor: tensor[index : index + 1], batch)


def score(
    module: nn.Module,
    groups: Iterable[ChannelGroup],
    criterion: str,
    *,
    examples: Examples | None = None,
    seed: int = 0,
) -> dict[str, Scores]:
    """Scores of every unit.

    * l1: sum of magnitudes of the unit's entries in weights (Li et al., arXiv 1608.08710), made and read.
    * l2: square root of the sum of their squares (as DepGraph's group norm, arXiv 2301.12900).
    * fpgm: sum of Euclidean distances of the unit's filters to those of the other units (He et al.,
      arXiv 1811.00250): what others can stand in for matters less.
    * bn_scale: sum of magnitudes of norm weights (Liu et al., arXiv 1708.06519); l2 in a group without norms.
    * taylor: mean over samples of |sum of gradient x weight| over the weights that read the unit, which is the
      change of the loss, to first order, when the unit falls silent (Molchanov et al., arXiv 1906.10771).
    * fisher: half the mean square of the same sum (Theis et al., arXiv 1801.05787).

    Gradients are taken sample by sample: those of a batch cancel, the more the larger it is.
    * random: uniform numbers, the baseline.

    Args:
        module: the model.
        groups: its groups.
        criterion: one of the above.
        examples: batches and loss, for taylor and fisher.
        seed: for random.

    Returns:
        float64[units] for each group's name.

    Raises:
        ConfigError: unknown criterion, or no examples where they are needed.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"unknown criterion {criterion!r}{did_you_mean(criterion, CRITERIA)}")
    groups = list(groups)
    if criterion in DATA_DRIVEN:
        if examples is None:
            raise ConfigError(f"criterion {criterion!r} needs examples: batches and a loss.")
        return _from_gradients(module, groups, examples, squared=criterion == "fisher")
    if criterion == "random":
        generator = np.random.default_rng(seed)
        return {group.name: generator.random(group.units) for group in groups}
    tensors = _tensors(module)
    of_group = {"l1": _l1, "l2": _l2, "fpgm": _fpgm, "bn_scale": _bn_scale}[criterion]
    return {group.name: of_group(group, tensors) for group in groups}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().double().cpu() for name, value in module.named_parameters(remove_duplicate=False)
    }


def _weights(group: ChannelGroup, tensors: dict[str, Tensor]) -> list[Member]:
    """Dimensions of matrices and kernels."""
    return [member for member in group.members if member.tensor in tensors and tensors[member.tensor].ndim > 1]


def _entries(group: ChannelGroup, member: Member, tensor: Tensor) -> Tensor:
    """Entries of each unit, [units, entries of a unit]."""
    index = torch.from_numpy(group.members[member])
    picked = tensor.movedim(member.dim, 0)[index.ravel()]
    return picked.reshape(len(index), -1)


def _l1(group: ChannelGroup, tensors: dict[str, Tensor]) -> Scores:
    parts = [_entries(group, m, tensors[m.tensor]).abs().sum(1) for m in _weights(group, tensors)]
    return _added(group, parts)


def _l2(group: ChannelGroup, tensors: dict[str, Tensor]) -> Scores:
    parts = [_entries(group, m, tensors[m.tensor]).square().sum(1) for m in _weights(group, tensors)]
    return np.sqrt(_added(group, parts))


def _fpgm(group: ChannelGroup, tensors: dict[str, Tensor]) -> Scores:
    weights = _weights(group, tensors)
    made = [member for member in weights if group.roles[member] == "out"] or weights
    if not made:
        return np.zeros(group.units)
    filters = torch.cat([_entries(group, member, tensors[member.tensor]) for member in made], dim=1)
    distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
    return np.asarray(distances.sum(1).numpy(), dtype=np.float64)


def _bn_scale(group: ChannelGroup, tensors: dict[str, Tensor]) -> Scores:
    scales = [m for m, role in group.roles.items() if role == "scale" and m.tensor in tensors]
    if not scales:
        return _l2(group, tensors)
    return _added(group, [_entries(group, member, tensors[member.tensor]).abs().sum(1) for member in scales])


def _added(group: ChannelGroup, parts: list[Tensor]) -> Scores:
    return np.asarray(torch.stack(parts).sum(0).numpy() if parts else np.zeros(group.units), dtype=np.float64)


def _from_gradients(
    module: nn.Module, groups: list[ChannelGroup], examples: Examples, squared: bool
) -> dict[str, Scores]:
    """Gradient times weight over what reads each unit, in evaluation mode, so that nothing is random."""
    totals = {group.name: np.zeros(group.units) for group in groups}
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    count = 0
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
        with in_mode(module, training=False):
            for sample in examples.samples():
                loss = _scalar(examples.loss(module, sample))
                gradients = torch.autograd.grad(loss, list(wanted), allow_unused=True)
                products = {
                    id(p): (p.detach() * g).double().cpu()
                    for p, g in zip(wanted, gradients, strict=True)
                    if g is not None
                }
                by_name = {name: products[id(p)] for name, p in parameters.items() if id(p) in products}
                for group in groups:
                    change = _change(group, by_name)
                    totals[group.name] += 0.5 * change**2 if squared else np.abs(change)
                count += 1
    finally:
        for parameter, want in wanted.items():
            parameter.requires_grad_(want)
    if not count:
        raise ConfigError("a criterion that needs gradients got no batch; pass at least one.")
    return {name: total / count for name, total in totals.items()}


def _scalar(loss: Any) -> Tensor:
    """What the examples' loss gave, as one number with a gradient.

    Raises:
        ConfigError: it is nothing that gradients flow from.
    """
    if isinstance(loss, Tensor) and loss.requires_grad:
        return loss.mean()
    given = "a tensor without gradient" if isinstance(loss, Tensor) else type(loss).__name__
    raise ConfigError(
        f"the loss of examples gives {given}. Return a tensor that gradients flow from, such as "
        "cross_entropy(module(inputs), labels).",
        field="examples",
    )


def _change(group: ChannelGroup, products: dict[str, Tensor]) -> Scores:
    """First-order change of the loss for each unit: over what reads it, else over what makes it."""
    present = [member for member in group.members if member.tensor in products]
    reading = [member for member in present if group.roles[member] == "in"]
    making = [member for member in present if group.roles[member] == "out"]
    return _added(group, [_entries(group, m, products[m.tensor]).sum(1) for m in reading or making])


def loss_of_magnitude(scores: Scores, kept: NDArray[np.int64]) -> NDArray[np.float64]:
    """Expected loss of a group whose scores are magnitudes: minus the logarithm of the share that stays.

    Shares of what passes a chain of layers multiply, so their logarithms add.
    """
    ordered = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
    if ordered[-1] <= 0:
        return np.zeros(len(kept))
    gone = ordered[len(scores) - kept] / ordered[-1]
    return -np.log(np.clip(1.0 - gone, 1e-9, 1.0))


def loss_of_estimates(scores: Scores, kept: NDArray[np.int64]) -> NDArray[np.float64]:
    """Expected loss of a group whose scores estimate changes of the loss: their sum."""
    ordered = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
    return np.asarray(ordered[len(scores) - kept])
