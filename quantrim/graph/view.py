"""The model as every stage sees it: nodes with canonical ops, joined by tensor names.

A :class:`Graph` is plain data. Two makers fill it: :mod:`quantrim.graph.from_onnx` and the tracer of
:mod:`quantrim.qat`. Placement, calibration and verdicts read it and know nothing of ONNX or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant operand of a linear op.

    Attributes:
        name: tensor name of the constant.
        axis: dimension that counts output channels (of one group, for a transposed convolution).
        shape: its shape.
    """

    name: str
    axis: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        name: unique name; a user's ``skip`` globs match it.
        op: canonical op ("conv", "linear", "add", ...; "other" when quantrim has no name for it).
        kind: what the source calls it ("Conv", "aten::conv2d").
        inputs: activation tensors read, in order; constants are left out.
        outputs: tensors made, in order.
        weight: constant operand of a linear op, else None.
        bias: name of the constant bias, else None.
        attributes: what placement needs to know (group, low/high of clip, mode, ...).
        module: path of the module that the node came from ("backbone.stage3.0.conv"), where the source tells.
    """

    name: str
    op: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: Weight | None = None
    bias: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""

    @property
    def output(self) -> str:
        """First output, the only one of most ops."""
        return self.outputs[0]


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order with the tensors that enter and leave.

    Attributes:
        nodes: every node, producers before consumers.
        inputs: tensors fed by the user.
        outputs: tensors returned to the user.
        shapes: shape of each floating tensor, for the example that was run (batch included).
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def producer(self) -> dict[str, Node]:
        """The node that makes each tensor; graph inputs have none."""
        return {tensor: node for node in self.nodes for tensor in node.outputs}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """The nodes that read each tensor, in order."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                readers.setdefault(tensor, []).append(node)
        return {tensor: tuple(nodes) for tensor, nodes in readers.items()}

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    def sole_consumer(self, tensor: str) -> Node | None:
        """The only reader of a tensor, or None when it has several, none, or leaves the graph."""
        readers = self.consumers.get(tensor, ())
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None


def macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of a node for the example's shapes; 0 for ops without multiplications.

    A convolution with weight (O, I/g, kH, kW) makes I/g*kH*kW products for each output value; a matrix
    product of inner size K makes K.
    """
    out = graph.shapes.get(node.output)
    if out is None:
        return 0
    size = _product(out)
    if node.op == "conv" and node.weight:
        return size * _product(node.weight.shape[1:])
    if node.op == "conv_transpose" and node.weight:
        source = graph.shapes.get(node.inputs[0], ())
        return _product(source) * _product(node.weight.shape[1:])
    if node.op == "linear" and node.weight:
        return size * (_product(node.weight.shape) // node.weight.shape[node.weight.axis])
    shapes = [graph.shapes.get(name) for name in node.inputs]
    if node.op in ("conv", "conv_transpose") and len(shapes) > 1 and shapes[1]:  # its weight is computed
        return (size if node.op == "conv" else _product(shapes[0] or ())) * _product(shapes[1][1:])
    if node.op == "matmul":
        return size * _inner(shapes, out)
    if node.op == "einsum":
        return _einsum_macs(node, shapes)
    return 0


def _inner(shapes: Sequence[tuple[int, ...] | None], out: tuple[int, ...]) -> int:
    """Length of the axis that a matrix product sums over; a constant operand is not among the shapes."""
    first = shapes[0] if shapes else None
    if not first:
        return 0
    is_right = len(shapes) == 1 and len(first) > 1 and len(out) > 1 and first[-2] != out[-2]
    return first[-2] if is_right else first[-1]


def _einsum_macs(node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
    """Products of an Einsum: one for each combination of its letters' values."""
    terms = str(node.attributes.get("equation", "")).replace(" ", "").split("->")[0].split(",")
    if len(shapes) < 2 or len(terms) != len(shapes):
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        letters, _, tail = term.partition("...")
        if shape is None or len(shape) < len(letters) + len(tail):
            return 0
        sizes |= dict(zip(letters, shape, strict=False))
        sizes |= dict(zip(reversed(tail), reversed(shape), strict=False))
        rest = shape[len(letters) : len(shape) - len(tail)]
        sizes |= {f"...{place}": length for place, length in enumerate(reversed(rest))}
    return _product(tuple(sizes.values()))


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
