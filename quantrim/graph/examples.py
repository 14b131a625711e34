"""Inputs to export an nn.Module with, taken from whatever it is calibrated on.

The first batch of the data is an example of the inputs. A module says by its forward what it takes: the names
and the number of its arguments, and by its convolutions of how many axes an input is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantrim.errors import ConfigError, DataError, ModelError, first_line
from quantrim.graph.peek import Peeked
from quantrim.modules import in_mode

#: Axes of the input of a convolution, batch included.
_AXES = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5, nn.ConvTranspose2d: 4}


@dataclass(frozen=True, slots=True)
class Example:
    """Positional inputs of a module.

    Attributes:
        inputs: tensors in the order of forward's arguments.
        names: what forward calls them.
        named: whether they were given by name, so that files should name them so.
    """

    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    named: bool


def require_float32(module: nn.Module) -> None:
    """Refuse a module of other floats.

    Raises:
        ModelError: names the first parameter.
    """
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(
                f"parameter {name!r} of {type(module).__name__} is {str(tensor.dtype).removeprefix('torch.')}; "
                "quantrim starts from float32. Call .float() on the module first."
            )


def given_example(module: nn.Module, inputs: Any) -> Example:
    """Example inputs as the user gave them: a tensor, several, or a mapping by forward's argument names.

    Raises:
        ConfigError: a name is no argument of forward, or one is left out between others.
    """
    names = _arguments(module)
    if isinstance(inputs, Mapping):
        unknown = next((name for name in inputs if name not in names), None)
        order = [name for name in names if name in inputs]
        if unknown is not None or order != names[: len(order)]:
            raise ConfigError(
                f"example_inputs are named {', '.join(map(str, inputs))}; forward of {type(module).__name__} "
                f"takes {', '.join(names)}.",
                field="example_inputs",
            )
        return Example(tuple(inputs[name] for name in order), tuple(order), True)
    tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    return Example(tensors, tuple(names[: len(tensors)]), False)


def example_of(module: nn.Module, data: Any, shape: tuple[int, ...] | None = None) -> Example:
    """Example inputs of a module: the first batch of its calibration data.

    Args:
        module: the model.
        data: an array or tensor, arrays by name, or an iterable of samples or batches; an iterator as
            :class:`quantrim.graph.peek.Peeked`.
        shape: of the first input, where the data are files.

    Raises:
        ConfigError: the data are files and no shape is given.
        DataError: there is no batch, or the module can't take it.
    """
    if isinstance(data, str | Path):
        if shape is None:
            raise ConfigError(
                "an nn.Module that is calibrated on files needs example_inputs, a batch of its inputs, or "
                "input_shape.",
                field="example_inputs",
            )
        generator = torch.Generator().manual_seed(0)
        return given_example(module, torch.randn(shape, generator=generator))
    if isinstance(data, np.ndarray | Tensor):
        return _accepted(module, _picked(module, data[:1]), exact=True)
    if isinstance(data, Mapping):
        return _accepted(module, _picked(module, {name: rows[:1] for name, rows in data.items()}), exact=True)
    first = data.first() if isinstance(data, Peeked) else next(iter(data), None)
    if first is None:
        raise DataError("there are no calibration data.")
    return _accepted(module, _picked(module, first), exact=False)


def _arguments(module: nn.Module) -> list[str]:
    """Names of forward's positional arguments."""
    found = inspect.signature(module.forward).parameters.values()
    return [one.name for one in found if one.kind in (one.POSITIONAL_OR_KEYWORD, one.POSITIONAL_ONLY)]


def _required(module: nn.Module) -> int:
    found = inspect.signature(module.forward).parameters.values()
    plain = [one for one in found if one.kind in (one.POSITIONAL_OR_KEYWORD, one.POSITIONAL_ONLY)]
    return max(1, sum(one.default is one.empty for one in plain))


def _picked(module: nn.Module, item: Any) -> Example:
    """The inputs in an item of data; labels and other extras behind them are left out."""
    names, count = _arguments(module), _required(module)
    if isinstance(item, Mapping):
        order = [name for name in names if name in item]
        if len(order) < count and not (count == 1 and len(item) == 1):
            raise DataError(
                f"the calibration data are named {', '.join(map(str, item))}; forward of "
                f"{type(module).__name__} takes {', '.join(names)}. Name them so, or give tuples in that order."
            )
        order = order or names[:1]
        values = [item[name] for name in order] if order[0] in item else list(item.values())
        return Example(tuple(map(_tensor, values)), tuple(order), order[0] in item)
    if isinstance(item, tuple | list):
        if not item:
            raise DataError("the first item of the calibration data is empty.")
        if isinstance(item[0], tuple | list | Mapping):  # ((input, ...), label)
            return _picked(module, item[0])
        if len(item) < count:
            raise DataError(
                f"an item of the calibration data holds {len(item)} arrays; forward of {type(module).__name__} "
                f"takes {', '.join(names[:count])}."
            )
        return Example(tuple(map(_tensor, item[:count])), tuple(names[:count]), False)
    return Example((_tensor(item),), tuple(names[:1]), False)


def _tensor(value: Any) -> Tensor:
    """Values as the module takes them: numpy's default float64 becomes float32."""
    tensor = torch.as_tensor(value).detach().cpu()
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _accepted(module: nn.Module, example: Example, *, exact: bool) -> Example:
    """The example as the module takes it; ``exact`` where its first axis is known to count samples."""
    for name, tensor in zip(example.names, example.inputs, strict=False):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"the calibration data hold NaN or infinite values (input {name!r}).")
    as_batch = Example(tuple(t[None] for t in example.inputs), example.names, example.named)
    axes = _axes(module)
    if not exact and axes is not None and example.inputs[0].ndim == axes - 1:
        return _tried(module, as_batch)
    if exact or axes is not None:
        return _tried(module, example)
    try:
        return _tried(module, example)
    except DataError:
        try:
            return _tried(module, as_batch)
        except DataError:
            return _tried(module, example)


def _axes(module: nn.Module) -> int | None:
    """Axes of an image of the module's first plain convolution, batch included; None without one."""
    return next((_AXES[type(layer)] for layer in module.modules() if type(layer) in _AXES), None)


def _tried(module: nn.Module, example: Example) -> Example:
    """The example, after the module has taken it.

    Raises:
        DataError: it has not; the user's forward may raise anything.
    """
    try:
        with in_mode(module, False), torch.no_grad():
            device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
            module(*(tensor.to(device) for tensor in example.inputs))
    except Exception as error:
        kinds = ", ".join(
            f"{str(t.dtype).removeprefix('torch.')} of shape {'x'.join(map(str, t.shape)) or '()'}"
            for t in example.inputs
        )
        raise DataError(
            f"{type(module).__name__} can't take a batch of the calibration data ({kinds}): "
            f"{first_line(error)}. Prepare them as the module's own inputs: dtype, order of axes, batch first."
        ) from error
    return example


def input_names(example: Example) -> Sequence[str] | None:
    """Names for the inputs of the exported file: forward's own where several or named inputs were given."""
    named = example.named or len(example.inputs) > 1
    return example.names if named and len(example.names) == len(example.inputs) else None
