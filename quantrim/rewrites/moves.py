"""Transposes and reshapes that undo each other.

- Transpose → Transpose is one Transpose, or none where the second undoes the first;
- Transpose → f → Transpose, with element-wise functions f of one tensor between them, is f → one Transpose;
- Reshape, Flatten, Squeeze or Unsqueeze → Reshape is the last of them alone.

Exactness: bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, given, operand, spell

_NAME = "moves that cancel"
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
#: Functions of one tensor, the same for every element.
ELEMENT_WISE = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Erf", "Mish",
     "Softplus", "Abs", "Neg", "Exp", "Sqrt", "Cast", "Identity", "Floor", "Round"}
)  # fmt: skip
_LONGEST = 8


def _find(draft: Draft) -> Iterator[Site]:
    for node in draft.nodes("Transpose"):
        chain = [*_between(draft, node)]
        if chain and chain[-1].op_type == "Transpose":
            yield Site(_NAME, "transposes", tuple(str(one.name) for one in (chain[-1], node, *chain[:-1])),
                       f"{order_of(draft, node)} {spell(draft.shape(node.inputs[0]))}")  # fmt: skip
    for node in draft.nodes("Reshape"):
        before = given(node, 0).producer()
        if before is None or before.op_type not in _RESHAPES or draft.reader(before.outputs[0]) is not node:
            continue
        sizes = array_of(operand(node, 1))
        if sizes is None or (sizes == 0).any():  # zero copies a size of the tensor between
            continue
        key = spell(draft.shape(before.inputs[0]), draft.shape(node.outputs[0]))
        yield Site(_NAME, "reshapes", (str(node.name), str(before.name)), key)


def _between(draft: Draft, node: ir.Node) -> Iterator[ir.Node]:
    """What alone reads a Transpose, one behind the other: functions, then perhaps the next Transpose."""
    for _ in range(_LONGEST):
        reader = draft.reader(node.outputs[0])
        if reader is None or reader.op_type not in ELEMENT_WISE | {"Transpose"}:
            return
        yield reader
        if reader.op_type == "Transpose":
            return
        node = reader


def order_of(draft: Draft, node: ir.Node) -> list[int]:
    """Permutation of a Transpose; axes reversed where it names none."""
    rank = len(draft.shape(node.inputs[0]))
    return list(node.attributes.get_ints("perm", list(range(rank))[::-1]))


def _apply(draft: Draft, site: Site) -> None:
    nodes = [draft.node(name) for name in site.nodes]
    if site.form == "reshapes":
        last, first = nodes
        draft.replace([first, last], [_again(last, [first.inputs[0], *last.inputs[1:]])])
        return
    last, first, *functions = nodes
    inner, outer = order_of(draft, first), order_of(draft, last)
    order = [inner[axis] for axis in outer]
    tensor, made = first.inputs[0], []
    for function in functions:
        made.append(_again(function, [tensor, *function.inputs[1:]]))
        made[-1].outputs[0].type = function.outputs[0].type
        tensor = made[-1].outputs[0]
    if order != sorted(order) or not made:
        op, attributes = ("Identity", {}) if order == sorted(order) else ("Transpose", {"perm": order})
        made.append(ir.node(op, [tensor], attributes, name=str(last.name)))
    draft.replace([first, *functions, last], made)


def _again(node: ir.Node, operands: Sequence[ir.Value | None]) -> ir.Node:
    return ir.node(node.op_type, operands, dict(node.attributes), name=str(node.name))


MOVES = Rewrite(_NAME, "bits", _find, _apply)
