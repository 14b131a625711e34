"""Operators that only move data: their index map is read by running them on tensors of labels.

The rules, for each dimension of an input that has slots:

1. Every position along it carries its slot's number, through the real operator.
2. Along exactly one output dimension the numbers vary: they are that dimension's slots.
3. They vary along several: one dimension is kept on which equal positions hold disjoint sets of numbers, and
   each set is tied (a view of C as (groups, C / groups) ties equal places of the groups; of C as
   (C / 4, 2, 2), blocks of four). Of several such dimensions the longest is kept;
   where an attention's heads go as a whole, the one before the positions of a head.
4. They don't vary, or two tracked dimensions meet in one: frozen.

Whether a size was computed from the tensor or written down can't be seen here; the self-check decides.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from quantrim.pruning.groups.slots import ChannelIds
from quantrim.pruning.groups.values import GraphCall, Result, Value, normal_axis
from quantrim.pruning.groups.walk import Walk, expanded


def move(walk: Walk, call: GraphCall) -> Result:
    """ChannelIds of the outputs of a data movement, by labels."""
    outputs: list[list[ChannelIds | None]] = [[None] * len(shape) for shape in call.shapes]
    rank = max(len(value.shape) for value in call.tensors())
    for axis in range(rank):
        if not any(value.dims[axis] is not None for value in call.tensors() if axis < len(value.shape)):
            continue
        table, labelled = _label(walk, call, axis)
        results = call.op(**_spelled(call, labelled))
        moved = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        for dims, labels in zip(outputs, moved, strict=True):
            _place(walk, call, dims, labels.numpy(), table)
    values: list[Any] = [Value(shape, tuple(dims)) for shape, dims in zip(call.shapes, outputs, strict=True)]
    return values if _returns_list(call) else values[0]


def move_like(walk: Walk, call: GraphCall) -> Result:
    """Rule of view_as, reshape_as, expand_as: the second tensor only gives the shape."""
    aten, size = torch.ops.aten, list(call.shapes[0])
    if call.name != "expand_as":
        return move(
            walk, replace(call, op=aten.reshape.default, arguments={"self": call.input(), "shape": size})
        )
    stretched = replace(call, op=aten.expand.default, arguments={"self": call.input(), "size": size})
    moved = move(walk, stretched) if call.input().tracked else call.untracked()
    return replace(moved, even=expanded(stretched).even) if isinstance(moved, Value) else moved


def _returns_list(call: GraphCall) -> bool:
    return str(call.op._schema.returns[0].type) == "List[Tensor]"


def _label(walk: Walk, call: GraphCall, axis: int) -> tuple[ChannelIds, dict[int, Tensor]]:
    """Table from label to slot, and a label tensor for each input."""
    table: list[ChannelIds] = []
    labelled: dict[int, Tensor] = {}
    offset = 0
    for value in call.tensors():
        if id(value) in labelled:
            continue
        size = value.shape[axis]
        reason = f"joined with channels that are fixed, by {call.name} in {call.place}"
        table.append(walk.filled(value.dims[axis], size, reason))
        view = [1] * len(value.shape)
        view[axis] = size
        labels = torch.arange(offset, offset + size, dtype=torch.int32).view(view)
        labelled[id(value)] = labels.expand(value.shape).contiguous()
        offset += size
    return np.concatenate(table), labelled


def _spelled(call: GraphCall, labelled: dict[int, Tensor]) -> dict[str, Any]:
    """Arguments of the operator on labels."""
    spelled = tree_map(lambda leaf: labelled[id(leaf)] if isinstance(leaf, Value) else leaf, call.arguments)
    return dict(spelled)


def _place(
    walk: Walk, call: GraphCall, dims: list[ChannelIds | None], labels: np.ndarray, table: ChannelIds
) -> None:
    if labels.size == 0:
        return
    varying = [axis for axis in range(labels.ndim) if (labels != labels.take([0], axis)).any()]
    if not varying:
        walk.space.freeze(table, f"a constant index picks channels, by {call.name} in {call.place}")
        return
    heads = None if len(varying) == 1 else _axis_of_heads(walk, call, labels, varying)
    axis = heads if heads is not None else _dividing_axis(labels, varying)
    if axis is None:
        walk.space.freeze(table, f"channels are mixed over several dimensions by {call.name} in {call.place}")
        return
    slots = _slots_along(walk, np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1), table)
    if len(varying) > 1:
        walk.splits.append((call.layer, slots, heads is not None))
    if heads is not None:
        walk.doubt(slots, f"heads of attention: their number or width is fixed in {call.place}")
    if dims[axis] is not None:
        walk.space.freeze(slots, f"two kinds of channels share a dimension after {call.name} in {call.place}")
        return
    dims[axis] = slots


def _dividing_axis(labels: np.ndarray, varying: list[int]) -> int | None:
    """The axis that parts the labels into most kinds, the later one of equals."""
    kinds = {axis: _kinds(labels, axis) for axis in varying}
    return max((axis for axis in varying if kinds[axis]), key=lambda axis: (kinds[axis], axis), default=None)


def _axis_of_heads(walk: Walk, call: GraphCall, labels: np.ndarray, varying: list[int]) -> int | None:
    """The axis before that of the positions of a head, in attention whose heads go as a whole."""
    attention = walk.attentions.get(call.layer)
    if attention is None:
        return None
    fitting = [axis for axis in varying if _kinds(labels, axis) > 1]
    heads = [axis for axis, after in pairwise(fitting) if labels.shape[after] in attention.sizes]
    return heads[-1] if heads else None


def _kinds(labels: np.ndarray, axis: int) -> int:
    """Into how many sets, equal or disjoint, positions along an axis part the labels; 0 where they don't."""
    rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    sets = {row.tobytes(): row for row in map(np.unique, rows)}
    apart = sum(map(len, sets.values())) == len(np.unique(rows))
    return len(sets) if apart else 0


def _slots_along(walk: Walk, rows: np.ndarray, table: ChannelIds) -> ChannelIds:
    """One slot for each row of labels; the slots of a row are tied."""
    slots = table[rows[:, 0]]
    mixed = np.flatnonzero((rows != rows[:, :1]).any(axis=1))
    for index in mixed:
        others = np.unique(rows[index])
        walk.space.tie(np.full(len(others), slots[index]), table[others])
    return slots


def split(walk: Walk, call: GraphCall) -> Result:
    """Rule of chunk and split: equal parts shrink alike; sizes of others may be computed or written down."""
    value = call.input()
    axis = normal_axis(call.arguments["dim"], len(value.shape))
    slots = value.dims[axis]
    if slots is not None and len(call.shapes) > 1:
        sizes = {shape[axis] for shape in call.shapes}
        if len(sizes) == 1:
            walk.space.tie_rows(slots.reshape(len(call.shapes), -1))
        else:
            walk.doubt(slots, f"split into unequal parts by {call.name} in {call.place}")
    return move(walk, call)


def shuffle(walk: Walk, call: GraphCall) -> Result:
    """Rule of channel shuffle: equal places of the groups are tied, so that groups stay equal."""
    slots = call.input().dims[1]
    if slots is not None:
        walk.space.tie_rows(slots.reshape(int(call.arguments["groups"]), -1))
    return move(walk, call)


def cut(walk: Walk, call: GraphCall) -> Result:
    """Rule of slice and narrow: bounds that divide the dimension into equal parts are taken for computed.

    Others may be the width of a layer; the self-check tells.
    """
    value = call.input()
    axis = normal_axis(call.arguments["dim"], len(value.shape))
    slots, size = value.dims[axis], value.shape[axis]
    if slots is not None and call.shapes[0][axis] != size:
        start, step, part = _bounds(call, axis, size)
        if step == 1 and size % part == 0 and start % part == 0:
            walk.space.tie_rows(slots.reshape(-1, part))
        elif step > 1 and size % step == 0 and part == size // step:
            walk.space.tie_rows(slots.reshape(-1, step).T)
        else:
            walk.doubt(slots, f"cut at constant places by {call.name} in {call.place}")
    return move(walk, call)


def _bounds(call: GraphCall, axis: int, size: int) -> tuple[int, int, int]:
    """First position, step and length of a cut."""
    start = int(call.arguments.get("start") or 0)
    start = start + size if start < 0 else start
    return start, int(call.arguments.get("step") or 1), call.shapes[0][axis]


def take_apart(walk: Walk, call: GraphCall) -> Result:
    """Rule of unbind: the dimension itself can't be pruned."""
    value = call.input()
    axis = normal_axis(call.arguments["dim"], len(value.shape))
    walk.freeze(value.dims[axis], f"each channel is used on its own after unbind in {call.place}")
    dims = tuple(slots for index, slots in enumerate(value.dims) if index != axis)
    return [Value(shape, dims) for shape in call.shapes]


def roll(walk: Walk, call: GraphCall) -> Result:
    """Rule of roll: the rolled dimensions freeze, since the shift is a number of channels."""
    value = call.input()
    axes = [
        normal_axis(axis, len(value.shape)) for axis in call.arguments.get("dims") or range(len(value.shape))
    ]
    for axis in axes:
        walk.freeze(value.dims[axis], f"rolled by a constant number of channels in {call.place}")
    return Value(call.shapes[0], value.dims)


def index(walk: Walk, call: GraphCall) -> Result:
    """Rule of indexing with tensors: indexed dimensions freeze, the others pass where their place is plain."""
    value, indices = call.input(), call.arguments["indices"]
    given = [axis for axis, one in enumerate(indices) if one is not None]
    for axis in given:
        walk.freeze(value.dims[axis], f"channels are picked by an index tensor in {call.place}")
    dims: list[ChannelIds | None] = list(value.dims)
    picked = indices[given[0]] if len(given) == 1 else None
    if isinstance(picked, Value) and len(picked.shape) == 1:
        dims[given[0]] = None
        return Value(call.shapes[0], tuple(dims))
    walk.freeze_value(value, f"channels are picked by index tensors in {call.place}")
    return call.untracked()


def pad(walk: Walk, call: GraphCall) -> Result:
    """Rule of padding: padded channels are new and fixed, other dimensions pass."""
    value, amounts = call.input(), list(call.arguments["pad"])
    dims: list[ChannelIds | None] = list(value.dims)
    for number in range(len(amounts) // 2):
        axis, before, after = len(dims) - 1 - number, amounts[2 * number], amounts[2 * number + 1]
        slots = dims[axis]
        if slots is None or before == after == 0:
            continue
        if call.arguments.get("mode", "constant") != "constant" or min(before, after) < 0:
            walk.freeze(slots, f"channels are padded by others or cut off in {call.place}")
            dims[axis] = None
            continue
        reason = f"channels are padded in {call.place}"
        ends = [walk.filled(None, amount, reason) for amount in (before, after)]
        dims[axis] = np.concatenate([ends[0], slots, ends[1]])
    return Value(call.shapes[0], tuple(dims))
