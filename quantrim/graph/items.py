"""Samples by input name from arrays and from the items of Python iterables.

A sample holds each input without its batch axis; an input that has none (a scalar, a table that the batch
shares) as it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from quantrim.errors import DataError
from quantrim.graph.arrays import StoredArray
from quantrim.graph.ports import Feed, Port, counting_samples, spell

Array = np.ndarray | StoredArray


def named_arrays(arrays: Mapping[str, Any], ports: Sequence[Port], source: object) -> dict[str, Any]:
    """Arrays by input name; where a model has one input, the only array that can be it, whatever its name.

    Raises:
        DataError: an input has no array.
    """
    found = {
        name: array if isinstance(array, StoredArray) else as_numpy(array) for name, array in arrays.items()
    }
    if all(port.name in found for port in ports):
        return {port.name: found[port.name] for port in ports}
    if len(ports) == 1:
        likely = [name for name, array in found.items() if len(found) == 1 or _can_be(array, ports[0])]
        if len(likely) == 1:
            return {ports[0].name: found[likely[0]]}
    missing = next(port for port in ports if port.name not in found)
    held = ", ".join(f"{name} ({spell(array.shape)})" for name, array in found.items())
    raise DataError(
        f"{source}: no array named {missing.name!r}; it holds {held or 'none'}. Name the array for input "
        f"{missing.name!r} ({spell(missing.shape)}) so."
    )


def _can_be(array: Array, port: Port) -> bool:
    """Whether an array can be samples of an input, or one of them: labels and the like can't."""
    if array.ndim == 0 or array.ndim < len(port.shape) - 1:
        return False
    return _fits(array.shape[1:], port.shape[1:]) or _fits(array.shape, port.shape[1:])


def samples_of_rows(
    arrays: Mapping[str, Array], ports: Sequence[Port], source: object, used: int = 0
) -> Iterator[Feed]:
    """Samples of arrays whose first axis counts them.

    An input without a batch axis is one array for all, or has one of its own for each sample.

    Args:
        arrays: by input name.
        ports: inputs of the model.
        source: what to call the data in errors.
        used: samples to leave out.

    Raises:
        DataError: an input is missing, its shape or values don't fit, or the numbers of samples differ.
    """
    counted = counting_samples(ports)
    for port in ports:
        if port.name not in arrays or (port.name in counted and arrays[port.name].ndim == 0):
            raise DataError(f"{source}: no samples for input {port.name!r} ({spell(port.shape)}).")
    shared = {
        port.name: fit(_whole(arrays[port.name]), port, port.shape, str(source))
        for port in ports
        if port.name not in counted and _fits(arrays[port.name].shape, port.shape)
    }
    rows = [port for port in ports if port.name not in shared]
    lengths = {port.name: len(arrays[port.name]) for port in rows}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{source}: inputs have different numbers of samples: {lengths}.")
    for index, values in enumerate(zip(*(arrays[port.name] for port in rows), strict=True)):
        if index < used:
            continue
        named = {
            port.name: fit(np.asarray(value), port, _sample_shape(port, counted), f"{source}: sample {index}")
            for port, value in zip(rows, values, strict=True)
        }
        yield {port.name: named.get(port.name, shared.get(port.name)) for port in ports}  # type: ignore[misc]


def _whole(array: Array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else np.stack(list(array))


def _sample_shape(port: Port, counted: frozenset[str]) -> tuple[int | None, ...]:
    return port.shape[1:] if port.name in counted else port.shape


def single_samples(source: Iterable[Any], ports: Sequence[Port]) -> Iterator[Feed]:
    """Samples by input name, of samples or batches: an item with one axis less than the input is a sample.

    An item is an array, for a model of one input; arrays in the order of the inputs, with labels behind them or
    not; or arrays by name.

    Raises:
        DataError: an item lacks an input, or does not fit.
    """
    counted = counting_samples(ports)
    main = next(port for port in ports if port.name in counted) if counted else ports[0]
    for index, item in enumerate(source):
        named = _named(item, ports, f"item {index} of the data")
        array = named[main.name]
        if not counted or array.ndim == len(main.shape) - 1:
            shapes = {port.name: _sample_shape(port, counted) for port in ports}
            yield {
                port.name: fit(named[port.name], port, shapes[port.name], f"sample {index}") for port in ports
            }
            continue
        if array.ndim == 0:
            raise DataError(
                f"item {index} of the data is a single value; input {main.name!r} is {spell(main.shape)}."
            )
        for row in range(len(array)):
            yield {
                port.name: _row(named[port.name], row, port, counted, f"a row of batch {index}")
                for port in ports
            }


def _row(array: np.ndarray, row: int, port: Port, counted: frozenset[str], what: str) -> np.ndarray:
    if port.name not in counted:
        return fit(array, port, port.shape, what)
    if array.ndim == 0 or len(array) <= row:
        raise DataError(f"{what}: input {port.name!r} has fewer samples than the others.")
    return fit(array[row], port, port.shape[1:], what)


def _named(item: Any, ports: Sequence[Port], what: str) -> dict[str, np.ndarray]:
    """Arrays of an item by input name."""
    if (
        isinstance(item, tuple | list)
        and item
        and (len(ports) == 1 or isinstance(item[0], tuple | list | Mapping))
    ):
        item = item[0]  # (inputs, label) of a data set or loader
    if isinstance(item, Mapping):
        return named_arrays(item, ports, what)
    if len(ports) == 1:
        return {ports[0].name: as_numpy(item)}
    if not isinstance(item, tuple | list) or len(item) < len(ports):
        names = ", ".join(port.name for port in ports)
        raise DataError(
            f"{what}: the model has {len(ports)} inputs ({names}); give tuples in this order, or dicts."
        )
    return {port.name: as_numpy(value) for port, value in zip(ports, item, strict=False)}


def as_numpy(value: Any) -> np.ndarray:
    """A tensor, array or number as an array."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _fits(got: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(got) == len(wanted) and all(w in (None, g) for w, g in zip(wanted, got, strict=True))


def fit(array: np.ndarray, port: Port, wanted: tuple[int | None, ...], what: str) -> np.ndarray:
    """The array in the input's dtype, after its shape and values were checked.

    Args:
        array: values of one sample, with a batch axis of 1 or without, or of an input that has no batch axis.
        port: the input.
        wanted: shape that it must have.
        what: the array in errors.

    Raises:
        DataError: another shape, a dtype that the input can't hold, NaN or infinite values.
    """
    if len(array.shape) == len(wanted) + 1 and array.shape[0] == 1 and _fits(array.shape[1:], wanted):
        array = array[0]
    if not _fits(array.shape, wanted):
        counts = " (the first axis counts samples)" if len(wanted) < len(port.shape) else ""
        raise DataError(
            f"{what} has shape {spell(array.shape)}, but input {port.name!r} takes {spell(port.shape)}{counts}."
        )
    if not np.issubdtype(array.dtype, np.number) and array.dtype != np.bool_:
        raise DataError(f"{what} has dtype {array.dtype}; input {port.name!r} takes {port.dtype}.")
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(port.dtype, np.floating) and array.ndim > 1:
        raise DataError(
            f"{what} has dtype {array.dtype}, but input {port.name!r} takes {port.dtype}. Apply the "
            "model's own preprocessing (scaling, mean, std) first."
        )
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused below
        cast = np.asarray(array, port.dtype)
    if np.issubdtype(array.dtype, np.floating) and not (np.isfinite(array).all() and np.isfinite(cast).all()):
        raise DataError(f"{what} holds NaN or infinite values (input {port.name!r}).")
    if np.issubdtype(port.dtype, np.integer) and not np.array_equal(cast, array):
        raise DataError(
            f"{what} holds values that input {port.name!r} ({port.dtype}) can't: {array.dtype} from "
            f"{array.min():g} to {array.max():g}. Give them as the model takes them, without preprocessing."
        )
    return cast
