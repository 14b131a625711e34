"""A module's operations as torch.export sees them, in evaluation and in training mode.

Both modes are needed: auxiliary heads run in training only, and they read channels that pruning removes.
Where the whole module can't be exported, its submodules are, each with the inputs it receives; what flows
between them is then unknown and stays frozen.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map_only

from quantrim.errors import ModelError, first_line
from quantrim.modules import Arguments, examples_accepted, function_modes_restored, in_mode


@dataclass(frozen=True, slots=True)
class Part:
    """One exported module.

    Attributes:
        path: its path in the whole module, "" for the whole.
        program: torch.export's graph and signature.
    """

    path: str
    program: Any


@dataclass(frozen=True, slots=True)
class Capture:
    """What could be exported in one mode.

    Attributes:
        training: the mode.
        parts: the whole module, or the submodules that could be exported instead.
        failures: why not, by path of the module that failed.
    """

    training: bool
    parts: tuple[Part, ...]
    failures: dict[str, str] = field(default_factory=dict)


def require_plain(module: nn.Module) -> None:
    """Refuse wrappers and reparametrised layers, whose parameters are not those that the forward uses.

    Raises:
        ModelError: the module is wrapped for data parallelism or by torch.compile, is a TorchScript program,
            is under quantization-aware training, a layer is parametrised, or a tensor has no values.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError("the model is a TorchScript program. Prune the nn.Module that it was made of.")
    if isinstance(module, DataParallel | DistributedDataParallel):
        raise ModelError(f"{type(module).__name__} wraps the model. Prune its .module, then wrap that again.")
    if hasattr(module, "_orig_mod"):
        raise ModelError(
            "the model is wrapped by torch.compile. Prune its ._orig_mod, then compile that again."
        )
    for path, layer in module.named_modules():
        if path == "quantrim" or path.startswith("quantrim."):
            raise ModelError("the model is under quantization-aware training. Prune it before, not after.")
        if parametrize.is_parametrized(layer):
            raise ModelError(
                f"layer {path!r} is parametrised (weight norm, spectral norm, ...). Bake the weights in with "
                "torch.nn.utils.parametrize.remove_parametrizations first."
            )
        if any(hasattr(layer, name) for name in ("weight_g", "weight_orig")):
            raise ModelError(
                f"layer {path!r} computes its weight in a hook (weight_norm, spectral_norm or "
                "torch.nn.utils.prune). Remove the hook first, e.g. with torch.nn.utils.remove_weight_norm."
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"{name!r} has no shape yet. Run the model once before it is pruned.")
        if tensor.is_meta:
            raise ModelError(f"{name!r} is on the meta device. Load the weights before the model is pruned.")
        if tensor.is_inference():
            raise ModelError(
                f"{name!r} was made under torch.inference_mode and can't be changed. Build the model outside."
            )


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Buffers such as running statistics return to their values afterwards."""
    kept = {name: value.clone() for name, value in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                if name in kept and kept[name].shape == value.shape:
                    value.copy_(kept[name])


def capture(module: nn.Module, arguments: Arguments, training: bool) -> Capture:
    """Export a module in one mode, or as many of its submodules as can be.

    Args:
        module: the model; it is left as it was.
        arguments: of its forward.
        training: export the training mode.
    """
    parts: list[Part]
    failures: dict[str, str]
    with in_mode(module, training), unchanged_buffers(module):
        for candidate in ([in_pairs(arguments)] if training else []) + [arguments]:
            parts, failures = [], {}
            _export_largest(module, "", candidate, parts, failures)
            if "" not in failures:
                break
    return Capture(training, tuple(parts), failures)


def in_pairs(arguments: Arguments) -> Arguments:
    """Tensors with one sample doubled: batch norms can't train on a single value."""

    def paired(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.flip(-1)]) if tensor.ndim > 1 and len(tensor) == 1 else tensor

    doubled: Arguments = tree_map_only(Tensor, paired, arguments)
    return doubled


def _export_largest(
    module: nn.Module, path: str, arguments: Arguments, parts: list[Part], failures: dict[str, str]
) -> None:
    program = _export(module, arguments)
    if not isinstance(program, str):
        parts.append(Part(path, program))
        return
    failures[path] = program
    try:
        received_by_children = _inputs_of_children(module, arguments)
    except ModelError as error:
        if not module.training:
            raise
        failures[path] = str(error)  # it may still be sound in evaluation; what training alone reaches freezes
        return
    for name, (child, received) in received_by_children.items():
        _export_largest(child, f"{path}.{name}".lstrip("."), received, parts, failures)


def _export(module: nn.Module, arguments: Arguments) -> Any:
    """torch.export's program, or the reason why there is none: non-strict first, then through Dynamo."""
    reason = ""
    for strict in (False, True):
        try:
            # without gradients, a forward under torch.no_grad is a part of the graph like any other
            with (
                warnings.catch_warnings(),
                _quiet(),
                function_modes_restored(),
                torch.random.fork_rng(devices=[]),
                torch.no_grad(),
            ):
                warnings.simplefilter("ignore")
                program = torch.export.export(module, arguments[0], arguments[1], strict=strict)
            return "sizes of tensors depend on their values" if _has_open_sizes(program) else program
        except Exception as error:  # torch.export raises a dozen types; the reason is reported
            reason = reason or f"torch.export fails: {first_line(error)}"
    return reason


def _has_open_sizes(program: Any) -> bool:
    """Whether some tensor has a size that only a run can tell, as after non-maximum suppression."""
    leaves = (leaf for node in program.graph.nodes for leaf in tree_leaves(node.meta.get("val")))
    return any(not isinstance(size, int) for leaf in leaves if isinstance(leaf, Tensor) for size in leaf.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own account of a failed export; its first line is in our report.

    Besides logging, torch prints the whole graph to stderr, for which it has no switch.
    """
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._dynamo", "torch.fx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _inputs_of_children(module: nn.Module, arguments: Arguments) -> dict[str, tuple[nn.Module, Arguments]]:
    """Children that are called while the module runs, with the arguments of the first call.

    Raises:
        ModelError: the forward fails.
    """
    seen: dict[str, tuple[nn.Module, Arguments]] = {}

    def keep(name: str) -> Any:
        def hook(child: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in seen:
                copied = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
                seen[name] = (child, copied)

        return hook

    named = _called_children(module)
    handles = [
        child.register_forward_pre_hook(keep(name), with_kwargs=True, prepend=True) for name, child in named
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), examples_accepted(module):
            module(*arguments[0], **arguments[1])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _called_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children; of containers that are never called themselves, such as ModuleList, their children."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += [(f"{name}.{inner}", grandchild) for inner, grandchild in _called_children(child)]
        else:
            found.append((name, child))
    return found
