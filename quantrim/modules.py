"""What several parts ask of any nn.Module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantrim.errors import ModelError, QuantrimError, first_line

#: Positional and keyword arguments of a forward.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
#: What a user may give as example inputs.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """The module in a mode; the modes of all its submodules return afterwards."""
    modes = {inner: inner.training for inner in module.modules()}
    try:
        module.train(training)
        yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode


def transparent_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module whose calls Python sees, once, with its path: all but torch.jit's and what they hold."""
    paths = dict(module.named_modules())
    opaque = [path for path, inner in paths.items() if isinstance(inner, torch.jit.ScriptModule)]
    for path, inner in paths.items():
        if not any(path == hidden or path.startswith(f"{hidden}.") for hidden in opaque):
            yield path, inner


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function run as it is written, even when it is called from torch.compile, or calls what is compiled.

    A compiler doesn't see through the function modes that watch a module's calls. Where nothing is compiled in
    this process, the function itself is returned, and the compiler isn't imported.
    """
    if "torch._dynamo" not in sys.modules:
        return function

    def eager(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    made: Callable[..., Any] = torch.compiler.disable(eager)  # type: ignore[no-untyped-call]
    return made


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones under each of their names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))


@contextmanager
def examples_accepted(module: nn.Module) -> Iterator[None]:
    """Turn what a forward raises on example inputs into one sentence.

    Raises:
        ModelError: the forward failed; the user's own code may raise anything.
    """
    try:
        yield
    except QuantrimError:
        raise
    except Exception as error:
        raise ModelError(
            f"the forward of {type(module).__name__} fails on the example inputs: {first_line(error)}. "
            "Pass example_inputs that the model accepts.",
            field="example_inputs",
        ) from error


@contextmanager
def function_modes_restored() -> Iterator[None]:
    """Take away the function modes that a failed export leaves behind.

    torch 2.15 doesn't leave the mode of its non-strict export where tracing raises; every later call of the
    process would go through it.
    """
    before = torch._C._len_torch_function_stack()
    try:
        yield
    finally:
        while torch._C._len_torch_function_stack() > before:
            torch._C._pop_torch_function_stack()


def example_arguments(inputs: Inputs) -> Arguments:
    """Positional and keyword arguments of a forward, from a tensor, several, or a mapping by keyword.

    Raises:
        ModelError: there is no tensor among them, or an empty one.
    """
    if isinstance(inputs, Mapping):
        arguments: Arguments = (), dict(inputs)
    elif isinstance(inputs, tuple | list):
        arguments = tuple(inputs), {}
    else:
        arguments = (inputs,), {}
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ModelError(
            f"the example inputs hold no tensor (given: {type(inputs).__name__}). Pass torch tensors, e.g. "
            "torch.randn(1, 3, 224, 224)."
        )
    empty = next((tuple(tensor.shape) for tensor in tensors if not tensor.numel()), None)
    if empty is not None:
        raise ModelError(f"an example input of shape {empty} is empty. Pass at least one sample.")
    return arguments
