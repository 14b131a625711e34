"""The self-check: a pruned model must compute what the masked one computes.

Zeroing all positions of a unit in every tensor silences it; removing them must not change anything more. Both
models run in double precision (in single where a forward insists on it) on random weights, so that a branch
that starts at zero is seen too, in evaluation and in training mode. Groups that don't agree are found by
bisection and frozen. This catches what no graph shows: sizes written into a forward, and branches that depend
on a size.

Where layer or group norms run over pruned channels their statistics change rightly; there both models run
with such norms reduced to their scale and shift.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from quantrim.errors import ModelError, first_line
from quantrim.modules import Arguments, example_arguments, in_mode
from quantrim.pruning.groups.capture import in_pairs, require_plain
from quantrim.pruning.groups.groups import ChannelGraph, ChannelGroup, Frozen, Removal, joined
from quantrim.pruning.surgery import remove, zero

#: Largest relative difference that rounding explains, double precision and single.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
#: Structure shows at small sizes too: inputs are cut to this height and width where the model accepts it.
_SMALL = 128


class _Plain(TorchFunctionMode):
    """Dropout does nothing; on request layer, group and RMS norms only scale and shift."""

    def __init__(self, without_statistics: bool) -> None:
        super().__init__()
        self.without_statistics = without_statistics

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if self.without_statistics and func in _NORMS:
            return _NORMS[func](*args, **kwargs)
        return func(*args, **kwargs)


def _last_affine(
    input: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, *rest: Any, **more: Any
) -> Tensor:
    output = input if weight is None else input * weight
    return output if bias is None else output + bias


def _channel_affine(
    input: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **more: Any,
) -> Tensor:
    shape = (-1, *(1,) * (input.ndim - 2))
    output = input if weight is None else input * weight.view(shape)
    return output if bias is None else output + bias.view(shape)


_DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.feature_dropout, torch.alpha_dropout,
}  # fmt: skip
_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _last_affine, torch.layer_norm: _last_affine,
    F.rms_norm: _last_affine, torch.rms_norm: _last_affine,
    F.group_norm: _channel_affine, torch.group_norm: _channel_affine,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: the outputs, or how and where it failed; the modules called, in order."""

    outputs: tuple[Tensor, ...]
    error: str
    where: str
    calls: tuple[str, ...]


class Checker:
    """Compares pruned with masked copies of a module.

    Args:
        module: the model; it is left as it was.
        example_inputs: as for :func:`quantrim.pruning.channel_graph`.

    Raises:
        ModelError: the model can't be copied, fails on the inputs, or is random in evaluation.
    """

    def __init__(self, module: nn.Module, example_inputs: Any) -> None:
        require_plain(module)
        self.name = type(module).__name__
        given = example_arguments(example_inputs)
        self.module = _copy(module).cpu().double()
        self.arguments, failed = self._fitting(given, torch.float64)
        if failed is not None:
            self.module = _copy(module).cpu().float()
            self.arguments, failed = self._fitting(given, torch.float32)
        if failed is not None:
            raise ModelError(
                f"the forward of {self.name} fails on the example inputs: {failed.error} "
                f"(in {failed.where or 'itself'}). Pass example_inputs that the model accepts."
            )
        self.modes = self._comparable_modes()

    def failure(self, removal: Removal, normalised: bool = False) -> str | None:
        """Why a removal is not exact, or None.

        Args:
            removal: positions to remove.
            normalised: layer or group norms run over them.
        """
        masked, pruned = copy.deepcopy(self.module), copy.deepcopy(self.module)
        zero(masked, removal)
        remove(pruned, removal)
        for training in self.modes:
            expected = self._run(masked, training, normalised)
            got = self._run(pruned, training, normalised)
            reason = _difference(expected, got)
            if reason is not None:
                return reason
        plain = self._run(pruned, self.modes[0], False)
        return _difference(plain, plain)

    def _run(self, module: nn.Module, training: bool, normalised: bool, seed: int = 0) -> _Run:
        return _observed_run(module, self.arguments, training, _Plain(normalised), seed)

    def _fitting(self, given: Arguments, dtype: torch.dtype) -> tuple[Arguments, _Run | None]:
        """Two small samples where the model accepts them, else what was given; a failed run if that fails."""
        _randomise(self.module)
        arguments = tree_map_only(Tensor, lambda tensor: _cast(tensor, dtype), given)
        small = tree_map_only(Tensor, _small, arguments)
        for candidate in (in_pairs(small), small, in_pairs(arguments), arguments):
            run = _observed_run(self.module, candidate, False, _Plain(False), 0)
            if not run.error:
                return candidate, None
        return arguments, run

    def _comparable_modes(self) -> tuple[bool, ...]:
        """Evaluation, and training if the model can train on these inputs without chance."""
        first, second = (self._run(self.module, False, False, seed) for seed in (0, 1))
        if _difference(first, second) is not None:
            raise ModelError(
                f"{self.name} gives other outputs for the same inputs in evaluation mode. Make it "
                "deterministic in eval (no noise, no sampling), so that pruning can be "
                "checked."
            )
        if not any(output.numel() for output in first.outputs):
            raise ModelError(
                f"{self.name} returns nothing that could be compared (no tensor, or no detection). Prune the "
                "part of it that computes features, with example inputs of its own."
            )
        if not any(torch.isfinite(output).any() for output in first.outputs):
            raise ModelError(
                f"the outputs of {self.name} are NaN or infinite on the example inputs. Pass finite inputs."
            )
        first, second = (self._run(self.module, True, False, seed) for seed in (0, 1))
        stable = not first.error and _difference(first, second) is None
        return (False, True) if stable else (False,)


def verified(graph: ChannelGraph, checker: Checker, seed: int = 0) -> ChannelGraph:
    """The graph without groups whose trial removal is not exact; those are listed as frozen.

    Args:
        graph: groups as the exported graphs show them.
        checker: of the same module.
        seed: of the trial's choice of units, half of each group.
    """
    generator = np.random.default_rng(seed)
    trials = {
        group.name: group.removal(generator.choice(group.units, group.units // 2, replace=False))
        for group in graph.groups
    }
    frozen = isolate(graph.groups, trials, checker)
    return without(graph, frozen)


def isolate(groups: Sequence[ChannelGroup], removals: dict[str, Removal], checker: Checker) -> dict[str, str]:
    """Groups whose removals are not exact, with reasons, by bisection.

    The groups found good grow as the search goes on, so that two groups that fail only together are told apart
    too.
    """
    accepted: list[ChannelGroup] = []
    frozen: dict[str, str] = {}

    def settle(candidates: Sequence[ChannelGroup]) -> None:
        if not candidates:
            return
        tried = [*accepted, *candidates]
        removal = joined(removals[group.name] for group in tried)
        reason = checker.failure(removal, any(group.normalised for group in tried))
        if reason is None:
            accepted.extend(candidates)
        elif len(candidates) == 1:
            frozen[candidates[0].name] = reason
        else:
            middle = len(candidates) // 2
            settle(candidates[:middle])
            settle(candidates[middle:])

    settle(groups)
    return frozen


def without(graph: ChannelGraph, frozen: dict[str, str]) -> ChannelGraph:
    """The graph with some groups frozen."""
    kept = np.array([group.name not in frozen for group in graph.groups], dtype=bool)
    numbers = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    return replace(
        graph,
        groups=tuple(group for group, keep in zip(graph.groups, kept, strict=True) if keep),
        frozen=(
            *graph.frozen,
            *(Frozen(g.name, frozen[g.name], g.channels) for g in graph.groups if g.name in frozen),
        ),
        group_of_slot=numbers[graph.group_of_slot],
    )


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{type(module).__name__} can't be copied for the self-check: {first_line(error)}. Detach tensors "
            "that it keeps as attributes, or register them as buffers."
        ) from error


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _small(tensor: Tensor) -> Tensor:
    if tensor.ndim == 4 and tensor.is_floating_point():
        tensor = tensor[:2, :, :_SMALL, :_SMALL]
    return tensor


def _randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights like those of He et al. (arXiv 1502.01852), vectors in 0.5..1.5, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    statistics = [
        value for name, value in module.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]
    with torch.no_grad():
        for tensor in (*module.parameters(), *statistics):
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.normal_(0.0, (2.0 / max(1, tensor[0].numel())) ** 0.5, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)


def _observed_run(
    module: nn.Module, arguments: Arguments, training: bool, mode: TorchFunctionMode, seed: int
) -> _Run:
    calls: list[str] = []
    stack: list[str] = []

    def enter(path: str) -> Any:
        def hook(*_: Any) -> None:
            calls.append(path)
            stack.append(path)

        return hook

    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    for path, layer in module.named_modules():
        handles += [layer.register_forward_pre_hook(enter(path)), layer.register_forward_hook(leave)]
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.clone(), arguments)
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    try:
        with in_mode(module, training), torch.no_grad(), torch.random.fork_rng(devices=[]), mode:
            torch.manual_seed(seed)
            outputs = module(*args, **kwargs)
    except Exception as error:  # a size that no longer fits may raise anything
        return _Run((), first_line(error), stack[-1] if stack else "", tuple(calls))
    finally:
        for handle in handles:
            handle.remove()
        for name, value in module.named_buffers():
            value.data.copy_(buffers[name])
    leaves = tuple(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
    return _Run(leaves, "", "", tuple(calls))


def _difference(expected: _Run, got: _Run) -> str | None:
    """Why two runs are not the same, or None."""
    if got.error:
        place = f"of {got.where!r}" if got.where else "of the model"
        return f"hard-coded size in the forward {place}: {got.error}"
    if expected.calls != got.calls:
        pairs = zip(expected.calls, got.calls, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected.calls), len(got.calls)))
        before = expected.calls[common - 1] if common else ""
        return f"the forward takes another branch after pruning, past {before or 'its start'!r}"
    if [leaf.shape for leaf in expected.outputs] != [leaf.shape for leaf in got.outputs]:
        return "the shape of an output changes"
    for one, other in zip(expected.outputs, got.outputs, strict=True):
        worst = _relative(one, other)
        if worst > _TOLERANCE.get(one.dtype, 1e-3):
            return (
                f"pruned and masked outputs differ by {worst:.1e} of their largest value: the forward depends "
                "on a size or on the order of channels"
            )
    return None


def _relative(expected: Tensor, got: Tensor) -> float:
    if not expected.numel():
        return 0.0
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(got)):
        return float("inf")
    expected, got = expected[finite].double(), got[finite].double()
    scale = max(float(expected.abs().max()), 1e-30) if len(expected) else 1.0
    return float((expected - got).abs().max()) / scale if len(expected) else 0.0
