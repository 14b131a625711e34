"""What a rewrite is: a rule that finds sites in a graph, and a function that changes one of them.

A rewrite never decides whether it pays. It says where it could be done; the engine's clock says whether
(:mod:`quantrim.rewrites.tuner`), and :func:`quantrim.rewrites.prove` that the outputs are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer

from quantrim.graph.from_onnx import KEEP_FLOAT

Shapes = Mapping[str, tuple[int, ...]]

#: "bits": every output bit for bit; "rounding": up to the order in which float32 sums are made.
Exactness = Literal["bits", "rounding"]


@dataclass(frozen=True, slots=True)
class Site:
    """A place where a rewrite can be done, and in which form.

    Attributes:
        rewrite: name of the rewrite.
        form: which of the rewrite's forms.
        nodes: names of the nodes that it replaces; the first names the site.
        key: what the engine will see there: operators, shapes and settings, the same for equal places of any
            model. A tuner's memory is kept by it.
    """

    rewrite: str
    form: str
    nodes: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An exact change of a graph.

    Attributes:
        name: what users and reports call it.
        exactness: how equal the outputs stay.
        find: sites in a draft; it changes nothing.
        apply: does one of them, in place.
    """

    name: str
    exactness: Exactness
    find: Callable[[Draft], Iterable[Site]]
    apply: Callable[[Draft, Site], None]


@dataclass(frozen=True, slots=True)
class Draft:
    """A model that is being rewritten.

    Attributes:
        model: the rewrite's own copy.
        shapes: shape of every floating tensor in one run, as
            :func:`quantrim.graph.from_onnx.observed_shapes` gives it.
    """

    model: ir.Model
    shapes: Shapes

    def nodes(self, *op_types: str) -> Iterator[ir.Node]:
        """Nodes of these types in the standard domain, in the order of the graph."""
        return (
            node for node in self.model.graph if node.op_type in op_types and node.domain in ("", "ai.onnx")
        )

    def node(self, name: str) -> ir.Node:
        """Node by name."""
        return next(node for node in self.model.graph if node.name == name)

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Observed shape of a tensor, or of a constant; () where it is not known."""
        if value is None:
            return ()
        if value.const_value is not None:
            return tuple(int(size) for size in value.const_value.shape.numpy())
        return self.shapes.get(str(value.name), ())

    def reader(self, value: ir.Value) -> ir.Node | None:
        """The only node that reads a tensor; None where it has several, or leaves the graph."""
        uses = value.uses()
        return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """New initializer; a number is appended to a name that is taken."""
        name = self._free(name, self.model.graph.initializers)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return value

    def replace(self, old: Sequence[ir.Node], new: Sequence[ir.Node], result: ir.Value | None = None) -> None:
        """Put nodes in the place of others; what the last one makes takes the place of ``result``.

        Args:
            old: nodes that go, the last of them made ``result``.
            new: nodes that come, in order; names of nodes and inner tensors are made unique.
            result: the tensor that is computed otherwise from now on; first output of the last old node.
        """
        was, made = result or old[-1].outputs[0], new[-1].outputs[0]
        taken = {str(node.name) for node in self.model.graph} - {str(node.name) for node in old}
        for node in new:
            node.name = self._free(str(node.name), taken)
            taken.add(node.name)
            for value in node.outputs:
                value.name = value.name or f"{node.name}_out{'' if value.index() == 0 else value.index()}"
                if value.dtype is None and was.dtype is not None:
                    value.dtype = was.dtype
        made.name, made.shape, made.type = was.name, was.shape, was.type
        ir.convenience.replace_nodes_and_values(self.model.graph, old[-1], old, new, [was], [made])

    @staticmethod
    def _free(name: str, taken: Iterable[str]) -> str:
        taken = set(taken)
        return next(n for n in (name, *(f"{name}__{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """A constant's value; None for what is computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def operand(node: ir.Node, position: int) -> ir.Value | None:
    """An input by its position; None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def given(node: ir.Node, position: int) -> ir.Value:
    """An input that is there."""
    value = node.inputs[position]
    assert value is not None, (node.name, position)
    return value


def keep_float(node: ir.Node, reason: str) -> ir.Node:
    """Mark a node that no quantizer should touch: its constants are arithmetic, not trained weights."""
    node.metadata_props[KEEP_FLOAT] = reason
    return node


def begin(model: ir.Model, shapes: Shapes) -> Draft:
    """Draft over a copy of a model."""
    return Draft(model.clone(), shapes)


def finish(draft: Draft) -> ir.Model:
    """The rewritten model, without what nobody reads any more."""
    onnxscript.optimizer.remove_unused_nodes(draft.model)
    draft.model.graph.sort()
    return draft.model


def spell(*shapes: Sequence[int]) -> str:
    """``1x3x8x8 2x4``: shapes in a site's key; the batch is part of it."""
    return " ".join("x".join(map(str, shape)) for shape in shapes)
