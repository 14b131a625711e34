"""Constants of a model: read, and made under names of their own."""

from __future__ import annotations

from collections.abc import Container
from itertools import chain, count

import numpy as np
import onnx_ir as ir


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The constant that a value is, or None where it is computed or fed."""
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def names_of(model: ir.Model) -> set[str]:
    """Every name of a tensor or node of the main graph."""
    names = {str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for node in model.graph:
        names.add(str(node.name))
        names.update(str(value.name) for value in node.outputs)
    return names


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or the name with the first number from 2 on that makes it new."""
    return next(one for one in chain([name], (f"{name}_{n}" for n in count(2))) if one not in taken)


def new_constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """Initializer of a model, float32 or int64; where the name is taken, a number is appended."""
    free = free_name(name, names_of(model))
    kept = array if array.dtype == np.int64 else np.asarray(array, np.float32)
    tensor = ir.tensor(np.ascontiguousarray(kept), name=free)
    value = ir.Value(
        name=free, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
