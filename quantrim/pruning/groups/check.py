"""The self-check: a pruned model must compute what the masked one computes.

Zeroing all positions of a unit in every tensor silences it; removing them must not change anything more. Both
models run in double precision (in single where a forward insists on it) on random weights, so that a branch
that starts at zero is seen too, in evaluation and in training mode. Groups that don't agree are found by
bisection and mended or frozen (:mod:`quantrim.pruning.groups.trial`). This catches what no graph shows: sizes
written into a forward, and branches that depend on a size.

Where norms or means run over pruned channels their statistics change rightly. There both models run once more
with just those statistics left out that were taken over fewer values: norms reduced to their scale and shift,
means and variances replaced by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from quantrim.errors import ModelError, first_line
from quantrim.modules import Arguments, example_arguments, in_mode
from quantrim.pruning.groups.capture import in_pairs, require_plain
from quantrim.pruning.groups.groups import Removal
from quantrim.pruning.surgery import remove, zero

#: Largest relative difference that rounding explains, double precision and single.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
#: Structure shows at small sizes too: inputs are cut to this height and width where the model accepts it.
_SMALL = 128


class _Plain(TorchFunctionMode):
    """Dropout does nothing; statistics are counted, and on request some are left out.

    Args:
        left_out: numbers of the statistics to leave out, in the order in which they are taken.
    """

    def __init__(self, left_out: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.left_out = left_out
        #: How many of the blocks that are about to go are running: what they count does not.
        self.within = 0
        #: How many values each statistic was taken over.
        self.counts: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        result = func(*args, **kwargs)
        count = None if self.within else _values_counted(func, args, kwargs, result)
        if count is None:
            return result
        self.counts.append(count)
        if len(self.counts) - 1 not in self.left_out:
            return result
        if func in _NORMS:
            return _NORMS[func](*args, **kwargs)
        return tree_map_only(Tensor, torch.ones_like, result)


def _values_counted(func: Any, args: Any, kwargs: Any, result: Any) -> int | None:
    """Over how many values a function takes each of its statistics; None where it takes none."""
    if func not in _NORMS and func not in _STATISTICS:
        return None
    given = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    if func in _STATISTICS:
        first = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return given.numel() // max(1, first.numel())
    # all of one sample, or of one filter, count together: only whether it changes is asked
    return given.numel() // max(1, given.shape[1] if func is F.batch_norm else given.shape[0])


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


def _filter_affine(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **more: Any,
) -> Tensor:
    if weight is not None and bool((weight == weight.flatten()[0]).all()):
        weight = None  # one gain for all, as of the number of inputs, that changes with them
    return _channel_affine(input, 1, weight, bias)


def _identity(input: Tensor, *rest: Any, **more: Any) -> Tensor:
    return input


_DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.feature_dropout, torch.alpha_dropout,
}  # fmt: skip
_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _last_affine, torch.layer_norm: _last_affine,
    F.rms_norm: _last_affine, torch.rms_norm: _last_affine,
    F.group_norm: _channel_affine, torch.group_norm: _channel_affine,
    F.batch_norm: _filter_affine, F.normalize: _identity,
}  # fmt: skip
_STATISTICS = {
    function
    for home in (torch, Tensor, torch.linalg)
    for name in ("mean", "var", "std", "var_mean", "std_mean", "norm", "vector_norm")
    if (function := getattr(home, name, None)) is not None
}


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: the outputs, or how and where it failed; the modules called and the statistics, in order."""

    outputs: tuple[Tensor, ...]
    error: str
    where: str
    calls: tuple[str, ...]
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a removal is not exact.

    Attributes:
        reason: in words.
        where: path of the module whose forward raised; None where none did.
    """

    reason: str
    where: str | None = None


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

    def failure(self, removal: Removal, normalised: bool = False) -> Failure | None:
        """Why a removal is not exact, or None.

        Args:
            removal: positions to remove.
            normalised: norms or means run over them, so that statistics may change.
        """
        masked, pruned = copy.deepcopy(self.module), copy.deepcopy(self.module)
        zero(masked, removal)
        remove(pruned, removal)
        going = frozenset(member.tensor for member in removal)
        for training in self.modes:
            reason = self._unlike(masked, pruned, training, normalised, going)
            if reason is not None:
                return reason
        plain = self._run(pruned, self.modes[0])
        return _difference(plain, plain)

    def _unlike(
        self, masked: nn.Module, pruned: nn.Module, training: bool, normalised: bool, going: frozenset[str]
    ) -> Failure | None:
        """Why two modules differ in a mode, but for statistics that are taken over fewer values."""
        expected, got = self._run(masked, training, going=going), self._run(pruned, training, going=going)
        reason = _difference(expected, got)
        if reason is None or not normalised or len(expected.counts) != len(got.counts):
            return reason
        pairs = enumerate(zip(expected.counts, got.counts, strict=True))
        fewer = frozenset(number for number, (one, other) in pairs if one != other)
        if not fewer:
            return reason
        runs = (self._run(one, training, fewer, going=going) for one in (masked, pruned))
        return _difference(*runs)

    def _run(
        self,
        module: nn.Module,
        training: bool,
        left_out: frozenset[int] = frozenset(),
        seed: int = 0,
        going: frozenset[str] = frozenset(),
    ) -> _Run:
        return _observed_run(module, self.arguments, training, _Plain(left_out), seed, going)

    def _fitting(self, given: Arguments, dtype: torch.dtype) -> tuple[Arguments, _Run | None]:
        """Two small samples where the model accepts them, else what was given; a failed run if that fails."""
        _randomise(self.module)
        arguments = tree_map_only(Tensor, lambda tensor: _cast(tensor, dtype), given)
        small = tree_map_only(Tensor, _small, arguments)
        for candidate in (in_pairs(small), small, in_pairs(arguments), arguments):
            run = _observed_run(self.module, candidate, False, _Plain(), 0)
            if not run.error:
                return candidate, None
        return arguments, run

    def _comparable_modes(self) -> tuple[bool, ...]:
        """Evaluation, and training if the model can train on these inputs without chance."""
        first, second = (self._run(self.module, False, seed=seed) for seed in (0, 1))
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
        first, second = (self._run(self.module, True, seed=seed) for seed in (0, 1))
        stable = not first.error and _difference(first, second) is None
        return (False, True) if stable else (False,)


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
    module: nn.Module,
    arguments: Arguments,
    training: bool,
    mode: _Plain,
    seed: int,
    going: frozenset[str] = frozenset(),
) -> _Run:
    """Run a module; what happens inside of blocks that are going is not told."""
    calls: list[str] = []
    stack: list[str] = []

    def enter(path: str) -> Any:
        def hook(*_: Any) -> None:
            if not mode.within:
                calls.append(path)
            stack.append(path)
            mode.within += path in going

        return hook

    def leave(*_: Any) -> None:
        mode.within -= stack.pop() in going

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
    return _Run(leaves, "", "", tuple(calls), tuple(mode.counts))


def _difference(expected: _Run, got: _Run) -> Failure | None:
    """Why two runs are not the same, or None."""
    if got.error:
        place = f"of {got.where!r}" if got.where else "of the model"
        return Failure(f"hard-coded size in the forward {place}: {got.error}", got.where)
    if expected.calls != got.calls:
        pairs = zip(expected.calls, got.calls, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected.calls), len(got.calls)))
        before = expected.calls[common - 1] if common else ""
        return Failure(f"the forward takes another branch after pruning, past {before or 'its start'!r}")
    if [leaf.shape for leaf in expected.outputs] != [leaf.shape for leaf in got.outputs]:
        return Failure("the shape of an output changes")
    for one, other in zip(expected.outputs, got.outputs, strict=True):
        worst = _relative(one, other)
        if worst > _TOLERANCE.get(one.dtype, 1e-3):
            return Failure(
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
