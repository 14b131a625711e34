"""Parameters and multiply-accumulates of a model, from one pass without arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from quantrim.modules import in_mode


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs at one input shape.

    Attributes:
        params: elements of the parameters that the outputs in eval mode depend on: what is deployed.
        training_params: elements of the others, such as those of auxiliary heads.
        macs: multiply-accumulates of convolutions and matrix products; one is two FLOPs.
    """

    params: int
    training_params: int
    macs: int


def profile(module: nn.Module, input_shape: Sequence[int]) -> ModelCost:
    """Count the parameters and multiply-accumulates of a model in eval mode.

    The model runs once on tensors that have a shape and no data, so that 1024x2048 costs milliseconds.

    Args:
        module: the model; left as it is, its mode too.
        input_shape: shape of its one input, such as (1, 3, 512, 1024).

    Returns:
        Cost of the whole batch.
    """
    buffers = {name: value.to("meta") for name, value in module.named_buffers()}
    weights = {
        name: value.detach().to("meta").requires_grad_(value.is_floating_point())
        for name, value in module.named_parameters()
    }
    with in_mode(module, training=False), FlopCounterMode(display=False) as counter:
        image = torch.empty(tuple(input_shape), device="meta")
        outputs = functional_call(module, weights | buffers, (image,))
    used = _used(outputs, weights)
    sizes = {name: value.numel() for name, value in module.named_parameters()}
    deployed = sum(size for name, size in sizes.items() if name in used)
    return ModelCost(deployed, sum(sizes.values()) - deployed, int(counter.get_total_flops()) // 2)


def _used(outputs: object, weights: dict[str, Tensor]) -> set[str]:
    """Names of the weights that the outputs depend on, by a backward pass that also moves no data."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    total = torch.stack([leaf.sum() for leaf in leaves]).sum()
    names = [name for name, value in weights.items() if value.requires_grad]
    gradients = torch.autograd.grad(total, [weights[name] for name in names], allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
