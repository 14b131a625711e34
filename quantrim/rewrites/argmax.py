"""The arg max behind a network, in the form that costs least.

- "without softmax": Softmax over the same axis, LogSoftmax or Sigmoid before ArgMax change no order;
- "before resize": ArgMax over channels and a nearest Resize commute: one value a pixel is resized, not all;
- "channels first": Transpose → ArgMax becomes ArgMax over the axis from where the transpose took it;
- "running maximum": ArgMax over the channels of an image as a chain of Greater, Max and Where over
  planes, which is what vector units like; an engine's own ArgMax may sort.

Exactness: bit for bit, the first of equal values wins as before; only "without softmax" may decide
otherwise where rounding in the softmax had made two different logits equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, given, operand, spell
from quantrim.rewrites.resize_matmul import is_spatial

_NAME = "arg max"
#: Channels above which a chain over planes is longer than any engine's own ArgMax.
_MOST_PLANES = 64


def _find(draft: Draft) -> Iterator[Site]:
    for node in draft.nodes("ArgMax"):
        shape = draft.shape(node.inputs[0])
        if not shape or node.attributes.get_int("select_last_index", False):
            continue
        before = given(node, 0).producer()
        key = f"axis {_axis(node, shape)} {spell(shape)}"
        if before is not None and draft.reader(before.outputs[0]) is node:
            names = (str(node.name), str(before.name))
            if _keeps_order(before, _axis(node, shape), len(shape)):
                yield Site(_NAME, "without softmax", names, key)
            if before.op_type == "Transpose":
                yield Site(_NAME, "channels first", names, key)
            if _axis(node, shape) == 1 and _is_nearest(draft, before):
                yield Site(_NAME, "before resize", names, f"{key} {spell(draft.shape(before.inputs[0]))}")
        if len(shape) == 4 and _axis(node, shape) == 1 and 2 <= shape[1] <= _MOST_PLANES and min(shape[2:]) > 1:
            yield Site(_NAME, "running maximum", (str(node.name),), key)


def _axis(node: ir.Node, shape: tuple[int, ...]) -> int:
    return node.attributes.get_int("axis", 0) % len(shape)


def _keeps_order(node: ir.Node, axis: int, rank: int) -> bool:
    if node.op_type in ("Softmax", "LogSoftmax"):
        return node.attributes.get_int("axis", -1) % rank == axis
    return node.op_type == "Sigmoid"


def _is_nearest(draft: Draft, node: ir.Node) -> bool:
    before, after = draft.shape(node.inputs[0] if node.inputs else None), draft.shape(node.outputs[0])
    if node.op_type != "Resize" or not is_spatial(node, before, after, frozenset({"nearest"})):
        return False
    return all(_factor(*sizes)[1] == sizes[1] for sizes in zip(before[2:], after[2:], strict=True))


def _factor(before: int, after: int) -> tuple[np.float32, int]:
    """Scale between two sizes, and the size that a Resize by it gives: rounding may take one away."""
    scale = np.float32(after) / np.float32(before)
    return scale, int(np.floor(np.float32(before) * scale))


def _apply(draft: Draft, site: Site) -> None:
    node = draft.node(site.nodes[0])
    if site.form == "running maximum":
        _running_maximum(draft, node)
        return
    before = draft.node(site.nodes[1])
    if site.form == "without softmax":
        made = ir.node("ArgMax", [before.inputs[0]], dict(node.attributes), name=str(node.name))
        draft.replace([before, node], [made])
    elif site.form == "channels first":
        _channels_first(draft, node, before)
    else:
        _before_resize(draft, node, before)


def _channels_first(draft: Draft, node: ir.Node, before: ir.Node) -> None:
    shape = draft.shape(node.inputs[0])
    order = list(before.attributes.get_ints("perm", list(range(len(shape)))[::-1]))
    axis = order[_axis(node, shape)]
    keep = node.attributes.get_int("keepdims", 1)
    found = ir.node("ArgMax", [before.inputs[0]], {"axis": axis, "keepdims": keep}, name=str(node.name))
    found.outputs[0].dtype = ir.DataType.INT64
    kept = order if keep else [position - (position > axis) for position in order if position != axis]
    made = [found]
    if kept != sorted(kept):
        made.append(ir.node("Transpose", [found.outputs[0]], {"perm": kept}, name=str(before.name)))
    draft.replace([before, node], made)


def _before_resize(draft: Draft, node: ir.Node, resize: ir.Node) -> None:
    """ArgMax → Cast → Resize → Cast; Resize has float kernels everywhere, and classes are exact in float32."""
    name = str(node.name)
    low = ir.node("ArgMax", [resize.inputs[0]], {"axis": 1, "keepdims": 1}, name=name)
    low.outputs[0].dtype = ir.DataType.INT64
    real = ir.node("Cast", [low.outputs[0]], {"to": ir.DataType.FLOAT.value}, name=f"{name}/float")
    real.outputs[0].dtype = ir.DataType.FLOAT
    scales, after = array_of(operand(resize, 2)), draft.shape(resize.outputs[0])
    if scales is None or scales.size != 4:
        before = draft.shape(resize.inputs[0])
        factors = [1.0, 1.0, *(_factor(*sizes)[0] for sizes in zip(before[2:], after[2:], strict=True))]
        factor = draft.constant(f"{name}_scales", np.array(factors, np.float32))
    else:
        factor = resize.inputs[2]  # type: ignore[assignment]
    large = ir.node("Resize", [real.outputs[0], None, factor], dict(resize.attributes), name=str(resize.name))
    large.outputs[0].dtype = ir.DataType.FLOAT
    draft.replace([resize, node], [low, real, large, *_as_classes(draft, node, large.outputs[0])])


def _as_classes(draft: Draft, node: ir.Node, tensor: ir.Value) -> list[ir.Node]:
    """Float classes (N, 1, H, W) as the arg max returns them: int64, with or without the axis."""
    made = []
    if not node.attributes.get_int("keepdims", 1):
        axes = draft.constant(f"{node.name}_axes", np.array([1], np.int64))
        made.append(ir.node("Squeeze", [tensor, axes], name=f"{node.name}/squeeze"))
        made[-1].outputs[0].dtype = ir.DataType.FLOAT
        tensor = made[-1].outputs[0]
    made.append(ir.node("Cast", [tensor], {"to": ir.DataType.INT64.value}, name=f"{node.name}/classes"))
    return made


def _running_maximum(draft: Draft, node: ir.Node) -> None:
    name, planes = str(node.name), draft.shape(node.inputs[0])[1]
    sizes = draft.constant(f"{name}_sizes", np.ones(planes, np.int64))
    split = ir.node("Split", [node.inputs[0], sizes], {"axis": 1}, num_outputs=planes, name=f"{name}/planes")
    made, best = [split], split.outputs[0]
    number = draft.constant(f"{name}_class", np.zeros((1, 1, 1, 1), np.float32))
    for index in range(1, planes):
        plane = split.outputs[index]
        greater = ir.node("Greater", [plane, best], name=f"{name}/greater{index}")
        greater.outputs[0].dtype = ir.DataType.BOOL
        made.append(greater)
        own = draft.constant(f"{name}_class", np.full((1, 1, 1, 1), index, np.float32))
        made.append(ir.node("Where", [greater.outputs[0], own, number], name=f"{name}/class{index}"))
        number = made[-1].outputs[0]
        if index + 1 < planes:
            made.append(ir.node("Max", [best, plane], name=f"{name}/max{index}"))
            best = made[-1].outputs[0]
    for one in made:
        for value in one.outputs:
            value.dtype = value.dtype or ir.DataType.FLOAT
    draft.replace([node], [*made, *_as_classes(draft, node, number)])


ARG_MAX = Rewrite(_NAME, "bits", _find, _apply)
