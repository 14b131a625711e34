"""Cross-layer equalisation: move scale from one convolution to the next where the function stays the same.

Nagel et al. (2019), section 4.1: relu(s x) = s relu(x) for s > 0, so output channel c of a convolution can
be divided by s_c and input channel c of the next multiplied by it. s_c = sqrt(r1_c / r2_c) makes the
weight ranges of both sides equal, which evens out the channels that share one activation scale. ReLU6 is
not homogeneous; pairs with a clip between them are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from quantrim.graph.from_onnx import constant
from quantrim.graph.ops import having
from quantrim.graph.view import Graph, Node

_ROUNDS = 8
_LARGEST_FACTOR = 1e4


def equalize(model: ir.Model, graph: Graph) -> ir.Model:
    """Copy of a normalised model with equalised weight ranges; it computes the same function."""
    weights = {
        name: constant(model, name).copy()
        for node in graph.nodes
        for name in (node.weight and node.weight.name, node.bias)
        if name
    }
    pairs = list(_pairs(graph))
    for _ in range(_ROUNDS):
        for first, second in pairs:
            _equalize_pair(weights, first, second)
    copy = model.clone()
    for name, array in weights.items():
        copy.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return copy


def _pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Convolutions that follow each other, with nothing but a homogeneous activation between them."""
    users: dict[str, int] = {}
    for node in graph.nodes:
        if node.weight:
            users[node.weight.name] = users.get(node.weight.name, 0) + 1
    for node in graph.nodes:
        if node.op != "conv" or node.weight is None or users[node.weight.name] > 1:
            continue
        reader = graph.sole_consumer(node.output)
        if reader is not None and reader.op in having("homogeneous") and len(reader.inputs) == 1:
            reader = graph.sole_consumer(reader.output)
        if reader is not None and _scalable(reader) and users[reader.weight.name] == 1:  # type: ignore[union-attr]
            yield node, reader


def _scalable(node: Node) -> bool:
    """Whether input channels can be scaled by themselves: a plain or a depthwise convolution."""
    if node.op != "conv" or node.weight is None:
        return False
    return node.attributes.get("group", 1) == 1 or node.weight.shape[1] == 1


def _equalize_pair(weights: dict[str, np.ndarray], first: Node, second: Node) -> None:
    assert first.weight is not None
    assert second.weight is not None
    one, two = weights[first.weight.name], weights[second.weight.name]
    groups = int(second.attributes.get("group", 1))
    by_input = _by_input_channel(two, groups)
    largest_one = np.abs(one).reshape(one.shape[0], -1).max(axis=1)
    largest_two = np.abs(by_input).reshape(by_input.shape[0], -1).max(axis=1)
    alive = (largest_one > 0) & (largest_two > 0)
    factor = np.where(alive, np.sqrt(largest_one / np.where(alive, largest_two, 1)), 1.0)
    factor = np.clip(factor, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR).astype(np.float32)
    one /= factor.reshape(-1, *(1,) * (one.ndim - 1))
    if first.bias:
        weights[first.bias] /= factor
    by_input *= factor.reshape(-1, *(1,) * (by_input.ndim - 1))


def _by_input_channel(weight: np.ndarray, groups: int) -> np.ndarray:
    """View of a convolution weight (O, I/g, kh, kw) with its input channels on the first axis."""
    outputs, inputs = weight.shape[:2]
    grouped = weight.reshape(groups, outputs // groups, inputs, *weight.shape[2:])
    moved = np.moveaxis(grouped, 2, 1)  # (g, I/g, O/g, kh, kw)
    return moved[0] if groups == 1 else moved[:, 0]
