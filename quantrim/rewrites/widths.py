"""Channels between two convolutions padded with zeros to the width of the engine's vectors.

Conv a → element-wise functions and depthwise convolutions → Conv b: more output channels of a with zero
weights and bias, and zero weights of b for them, change nothing. It is the opposite of pruning, and pays where
a kernel for 64 channels is faster than the one for 58 with its remainder.

Exactness: bit for bit but for the order of sums that another kernel chooses, hence to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, given, operand, spell
from quantrim.rewrites.moves import ELEMENT_WISE
from quantrim.rewrites.resize_order import copy_of

_NAME = "padded widths"
_BLOCKS = (16, 64)
#: Channels may grow by this factor at most.
_GROWTH = 1.35


def _find(draft: Draft) -> Iterator[Site]:
    for conv in draft.nodes("Conv"):
        chain = _chain(draft, conv)
        if chain is None:
            continue
        channels = _weight(conv).shape[0]
        names = tuple(str(node.name) for node in chain)
        key = spell(draft.shape(conv.inputs[0]), *(_weight(n).shape for n in chain if n.op_type == "Conv"),
                    draft.shape(chain[-1].outputs[0]))  # fmt: skip
        seen = {channels}
        for block in _BLOCKS:
            wanted = -(-channels // block) * block
            if wanted not in seen and wanted <= _GROWTH * channels:
                seen.add(wanted)
                yield Site(_NAME, f"multiple of {block}", names, key)


def _weight(conv: ir.Node) -> np.ndarray:
    weight = array_of(conv.inputs[1])
    assert weight is not None
    return weight


def _group(conv: ir.Node) -> int:
    return conv.attributes.get_int("group", 1)


def _is_constant(conv: ir.Node) -> bool:
    return array_of(conv.inputs[1]) is not None and (
        operand(conv, 2) is None or array_of(conv.inputs[2]) is not None
    )


def _chain(draft: Draft, conv: ir.Node) -> list[ir.Node] | None:
    """A convolution, what follows it channel by channel, and the convolution that mixes them again."""
    if not _is_constant(conv) or _group(conv) != 1:
        return None
    chain = [conv]
    while (reader := draft.reader(chain[-1].outputs[0])) is not None:
        if reader.op_type == "Conv":
            if reader.inputs[0] is not chain[-1].outputs[0] or not _is_constant(reader):
                return None
            chain.append(reader)
            if _group(reader) == 1:
                return chain
            if not _group(reader) == _weight(reader).shape[0] == _weight(conv).shape[0]:
                return None
        elif reader.op_type in ELEMENT_WISE and reader.inputs[0] is chain[-1].outputs[0]:
            chain.append(reader)
        else:
            return None
    return None


def _apply(draft: Draft, site: Site) -> None:
    nodes = [draft.node(name) for name in site.nodes]
    channels, block = _weight(nodes[0]).shape[0], int(site.form.rsplit(" ", 1)[1])
    more = -(-channels // block) * block - channels
    tensor, made = nodes[0].inputs[0], []
    for node in nodes:
        operands = [tensor, *node.inputs[1:]]
        if node.op_type == "Conv":
            mixes = node is nodes[-1]
            padded = np.pad(_weight(node), [(0, 0), (0, more), (0, 0), (0, 0)] if mixes else
                            [(0, more), (0, 0), (0, 0), (0, 0)])  # fmt: skip
            operands[1] = draft.constant(f"{given(node, 1).name}_padded", padded)
            if not mixes and (bias := array_of(operand(node, 2))) is not None:
                operands[2] = draft.constant(f"{given(node, 2).name}_padded", np.pad(bias, (0, more)))
        made.append(copy_of(node, operands))
        if node.op_type == "Conv" and _group(node) > 1:
            made[-1].attributes["group"] = ir.AttrInt64("group", channels + more)
        made[-1].outputs[0].type = node.outputs[0].type
        tensor = made[-1].outputs[0]
    draft.replace(nodes, made)


PADDED_WIDTHS = Rewrite(_NAME, "rounding", _find, _apply)
