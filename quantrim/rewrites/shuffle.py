"""Channel permutations folded into weights.

A permutation of channels (a shuffle: Reshape → Transpose → Reshape; or a Gather over channels) moves
behind element-wise functions, pooling and depthwise convolutions, whose weights are permuted, until every way
ends in a convolution that mixes channels, which takes it into the order of its input weights. Where a way ends
elsewhere (a Concat, an output), the permutation stays.

Exactness: to rounding; sums over input channels are made in another order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, given, operand, spell
from quantrim.rewrites.moves import ELEMENT_WISE, order_of

_NAME = "channel shuffle"
_BY_CHANNEL = ELEMENT_WISE | {"MaxPool", "AveragePool", "GlobalAveragePool"}


def _find(draft: Draft) -> Iterator[Site]:
    for node in draft.nodes("Transpose", "Gather"):
        found = permutation(draft, node)
        if found is None:
            continue
        first, last, order = found
        readers = _readers(draft, last.outputs[0], len(order))
        if readers:
            names = (str(last.name), *dict.fromkeys((str(first.name), str(node.name))))
            key = f"{spell(draft.shape(first.inputs[0]))} {order[:8].tolist()}"
            yield Site(_NAME, "folded", tuple(dict.fromkeys(names)), key)


def permutation(draft: Draft, node: ir.Node) -> tuple[ir.Node, ir.Node, np.ndarray] | None:
    """First and last node of a permutation of channels, and for every channel the one that it comes from.

    Args:
        draft: where the node stands.
        node: a Transpose between two Reshapes, or a Gather.
    """
    if node.op_type == "Gather":
        order, rank = array_of(operand(node, 1)), len(draft.shape(node.inputs[0]))
        axis = node.attributes.get_int("axis", 0) % max(rank, 1)
        if order is None or rank < 2 or axis != 1 or order.ndim != 1:
            return None
        order = order % draft.shape(node.inputs[0])[1]
        every = np.arange(draft.shape(node.inputs[0])[1])
        return (node, node, order) if np.array_equal(np.sort(order), every) else None
    before, after = given(node, 0).producer(), draft.reader(node.outputs[0])
    if before is None or after is None or before.op_type != "Reshape" or after.op_type != "Reshape":
        return None
    shapes = [draft.shape(v) for v in (before.inputs[0], node.inputs[0], after.outputs[0])]
    whole, parts, result = shapes
    alone = draft.reader(before.outputs[0]) is node
    if not alone or len(whole) != 4 or whole != result or len(parts) != 5 or parts[3:] != whole[2:]:
        return None
    if order_of(draft, node) != [0, 2, 1, 3, 4] or parts[0] != whole[0]:
        return None
    return before, after, np.arange(whole[1]).reshape(parts[1:3]).T.ravel()


def _readers(draft: Draft, tensor: ir.Value, channels: int) -> list[ir.Node] | None:
    """Nodes behind a permutation that must change when it goes; None where it can't."""
    found: list[ir.Node] = []
    if tensor.is_graph_output() or not tensor.uses():
        return None
    for node, position in tensor.uses():
        if node.op_type == "Conv" and position == 0 and _constant(node):
            group = node.attributes.get_int("group", 1)
            found.append(node)
            if group == 1:
                continue
            if group != channels or len(array_of(node.inputs[1])) != channels:  # type: ignore[arg-type]
                return None
        elif node.op_type not in _BY_CHANNEL or position != 0 or len(node.outputs) != 1:
            return None
        further = _readers(draft, node.outputs[0], channels)
        if further is None:
            return None
        found += further
    return found


def _constant(conv: ir.Node) -> bool:
    bias = operand(conv, 2)
    return array_of(conv.inputs[1]) is not None and (bias is None or array_of(bias) is not None)


def _apply(draft: Draft, site: Site) -> None:
    nodes = [draft.node(name) for name in site.nodes]
    middle = next(node for node in nodes if node.op_type in ("Transpose", "Gather"))
    found = permutation(draft, middle)
    assert found is not None
    first, last, order = found
    readers = _readers(draft, last.outputs[0], len(order))
    assert readers is not None
    for conv in dict.fromkeys(readers):
        _reorder(draft, conv, np.argsort(order))
    ir.convenience.replace_all_uses_with(last.outputs[0], given(first, 0))


def _reorder(draft: Draft, conv: ir.Node, back: np.ndarray) -> None:
    """Weights for channels in the order before the permutation; ``back[i]`` is where channel i had gone."""
    weight = array_of(conv.inputs[1])
    assert weight is not None
    mixes = conv.attributes.get_int("group", 1) == 1
    moved = weight[:, back] if mixes else weight[back]
    conv.replace_input_with(1, draft.constant(f"{given(conv, 1).name}_reordered", np.ascontiguousarray(moved)))
    bias = array_of(operand(conv, 2))
    if not mixes and bias is not None:
        conv.replace_input_with(2, draft.constant(f"{given(conv, 2).name}_reordered", bias[back]))


CHANNEL_SHUFFLE = Rewrite(_NAME, "rounding", _find, _apply)
