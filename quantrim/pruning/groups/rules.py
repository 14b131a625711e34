"""What each operator does with channels.

Operators are those of torch.export's graphs. Pointwise ones are known by their tag and data movements by
running them (:mod:`quantrim.pruning.groups.movement`); the tables below name the rest. An operator
without a rule freezes all channels that it reads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from quantrim.pruning.groups import movement
from quantrim.pruning.groups.contractions import conv, convolution, einsum, linear, matmul, scaled_attention
from quantrim.pruning.groups.slots import ChannelIds
from quantrim.pruning.groups.values import GraphCall, Result, Value, normal_axis
from quantrim.pruning.groups.walk import Rule, Walk, broadcast, expanded, fills

aten = torch.ops.aten


def pointwise(walk: Walk, call: GraphCall) -> Result:
    """Position by position: aligned dimensions are tied."""
    reason = f"combined with a tensor of fixed size by {call.name} in {call.place}"
    return Value(call.shapes[0], broadcast(walk, list(call.tensors()), call.shapes[0], reason))


def same(walk: Walk, call: GraphCall) -> Result:
    """The first tensor with other values, type or layout; other tensors don't matter."""
    return Value(call.shapes[0], call.input().dims, call.input().even)


def nothing(walk: Walk, call: GraphCall) -> Result:
    """A check or a fresh tensor of a written size: no channels come out."""
    return call.untracked(constant=fills(call))


def stretch(walk: Walk, call: GraphCall) -> Result:
    """Rule of expand: channels pass; the dimensions that are stretched take any size."""
    moved = movement.move(walk, call)
    return replace(moved, even=expanded(call).even) if isinstance(moved, Value) else moved


def unknown(walk: Walk, call: GraphCall) -> Result:
    """Freeze every channel that comes in."""
    name = getattr(call.op, "_opname", None) or str(call.op)
    for value in call.tensors():
        walk.freeze_value(value, f"no rule for operator {name} in {call.place}")
    return call.untracked()


def spatial(axes: int) -> Rule:
    """Pooling, resizing, padding by reflection: the last ``axes`` dimensions change, channels pass."""

    def rule(walk: Walk, call: GraphCall) -> Result:
        value = call.input()
        for slots in value.dims[-axes:]:
            walk.freeze(slots, f"{call.name} works across channels in {call.place}")
        dims = (*value.dims[:-axes], *(None,) * axes)
        values: list[Any] = [Value(shape, dims) for shape in call.shapes]
        return values[0] if len(values) == 1 else values

    return rule


def reduction(walk: Walk, call: GraphCall) -> Result:
    """Median, product, argmax...: each value depends on all channels, which freeze; other dimensions pass."""
    for slots in _reduced(call):
        walk.freeze(slots, f"channels are reduced by {call.name} in {call.place}")
    return _rest(call)


def tally(walk: Walk, call: GraphCall) -> Result:
    """Sum, largest and smallest value: silent channels add nothing, so that the self-check can decide."""
    for slots in _reduced(call):
        walk.doubt(slots, f"channels are reduced by {call.name} in {call.place}")
    return _rest(call)


def statistic(walk: Walk, call: GraphCall) -> Result:
    """Mean, variance, norm: as in a layer norm, they change with the width; the self-check does the rest."""
    for slots in _reduced(call):
        walk.doubt(slots, f"channels are reduced by {call.name} in {call.place}")
        walk.normalised.append(slots)
    return _rest(call)


def _axes(call: GraphCall) -> set[int]:
    """Dimensions that a reduction runs over."""
    given, rank = call.arguments.get("dim"), len(call.input().shape)
    return {normal_axis(axis, rank) for axis in ([given] if isinstance(given, int) else given or range(rank))}


def _reduced(call: GraphCall) -> list[ChannelIds]:
    """Slots that a reduction runs over."""
    dims = (call.input().dims[axis] for axis in sorted(_axes(call)))
    return [slots for slots in dims if slots is not None]


def _rest(call: GraphCall) -> Result:
    """What a reduction leaves."""
    axes, keep = _axes(call), bool(call.arguments.get("keepdim"))
    dims = [None if i in axes else slots for i, slots in enumerate(call.input().dims) if keep or i not in axes]
    values: list[Any] = [Value(shape, tuple(dims)) for shape in call.shapes]
    return values[0] if len(values) == 1 else values


def similarity(walk: Walk, call: GraphCall) -> Result:
    """Rule of cosine_similarity: both tensors are aligned, and reduced over one dimension."""
    first, second = list(call.tensors())[:2]
    shape = tuple(np.broadcast_shapes(first.shape, second.shape))
    dims = broadcast(walk, [first, second], shape, f"compared with a tensor of fixed size in {call.place}")
    axis = normal_axis(int(call.arguments.get("dim", 1)), len(shape))
    walk.doubt(dims[axis], f"channels are reduced by {call.name} in {call.place}")
    return Value(call.shapes[0], tuple(slots for i, slots in enumerate(dims) if i != axis))


def along(walk: Walk, call: GraphCall) -> Result:
    """Softmax, cumulative sums: each value depends on the whole dimension, which freezes."""
    value = call.input()
    slots = value.axis(call.arguments["dim"])
    walk.freeze(slots, f"{call.name} runs across channels in {call.place}")
    values: list[Any] = [Value(shape, value.dims) for shape in call.shapes]
    return values[0] if len(values) == 1 else values


def gated_halves(walk: Walk, call: GraphCall) -> Result:
    """Rule of glu: the first half gated by the second, so equal places of the halves are tied."""
    value = call.input()
    axis = normal_axis(call.arguments["dim"], len(value.shape))
    dims: list[ChannelIds | None] = list(value.dims)
    slots = dims[axis]
    if slots is not None:
        walk.space.tie_rows(slots.reshape(2, -1))
        dims[axis] = slots[: len(slots) // 2]
    return Value(call.shapes[0], tuple(dims))


def batch_norm(walk: Walk, call: GraphCall) -> Result:
    """Statistics for each channel: dimension 1 is tied to every vector.

    Where the statistics are the input's own, channels along other dimensions change them, as in weights that
    are standardised filter by filter.
    """
    value = call.input()
    _tie_vectors(walk, call, value.dims[1], ("weight", "bias", "running_mean", "running_var"))
    if call.arguments.get("training") or call.arguments.get("use_input_stats"):
        for slots in (value.dims[0], *value.dims[2:]):
            if slots is not None:
                walk.doubt(slots, f"weights are standardised in {call.place}")
                walk.normalised.append(slots)
    results: list[Any] = [Value(call.shapes[0], value.dims)]
    results += [Value(shape, (None,) * len(shape)) for shape in call.shapes[1:]]
    return results[0] if len(results) == 1 else results


def group_norm(walk: Walk, call: GraphCall) -> Result:
    """Equal places of the groups are tied, so that groups stay equal; statistics change with the width."""
    value, groups = call.input(), int(call.arguments["num_groups"])
    slots = value.dims[1]
    _tie_vectors(walk, call, slots, ("weight", "bias"))
    if slots is not None:
        walk.space.tie_rows(slots.reshape(groups, -1))
        walk.normalised.append(slots)
    return Value(call.shapes[0], value.dims)


def layer_norm(walk: Walk, call: GraphCall) -> Result:
    """The last dimensions are tied to weight and bias; statistics change with the width."""
    value = call.input()
    axes = len(call.arguments["normalized_shape"])
    for axis in range(-axes, 0):
        slots = value.dims[axis]
        for name in ("weight", "bias"):
            vector = call.tensor(name)
            if vector is not None and not vector.constant:
                walk.tie(slots, vector.dims[axis], f"{call.name} over a fixed dimension in {call.place}")
        _mark_scale(walk, call.tensor("weight"), axis)
        if slots is not None:
            walk.normalised.append(slots)
    return Value(call.shapes[0], value.dims)


def prelu(walk: Walk, call: GraphCall) -> Result:
    """One slope for all channels, or one for each."""
    value, weight = call.input(), call.tensor("weight")
    if weight is not None and math.prod(weight.shape) > 1:
        _tie_vectors(walk, call, value.dims[1], ("weight",))
    return Value(call.shapes[0], value.dims)


def embedding(walk: Walk, call: GraphCall) -> Result:
    """Rows are picked by number and freeze; columns are channels."""
    weight = call.input()
    walk.freeze(weight.dims[0], f"rows are picked by number in {call.place}")
    rank = len(call.shapes[0])
    return Value(call.shapes[0], (*(None,) * (rank - 1), weight.dims[1]))


def _tie_vectors(walk: Walk, call: GraphCall, slots: ChannelIds | None, names: tuple[str, ...]) -> None:
    for name in names:
        vector = call.tensor(name)
        if vector is not None and not vector.constant:
            walk.tie(slots, vector.dims[0], f"{call.name} over channels of fixed number in {call.place}")
    _mark_scale(walk, call.tensor("weight"), 0)


def _mark_scale(walk: Walk, weight: Value | None, axis: int) -> None:
    slots = None if weight is None else weight.dims[axis]
    if slots is not None:
        walk.scales.append(np.asarray(slots))


#: Rules by operator; all overloads of one share it.
RULES: dict[Any, Rule] = {
    aten.conv1d: conv, aten.conv2d: conv, aten.conv3d: conv,
    aten.conv_transpose1d: conv, aten.conv_transpose2d: conv, aten.conv_transpose3d: conv,
    aten.convolution: convolution, aten.linear: linear,
    aten.matmul: matmul, aten.mm: matmul, aten.bmm: matmul, aten.einsum: einsum,
    aten.scaled_dot_product_attention: scaled_attention,
    aten.batch_norm: batch_norm, aten.instance_norm: batch_norm,
    aten._native_batch_norm_legit_no_training: batch_norm,
    aten.group_norm: group_norm, aten.layer_norm: layer_norm, aten.rms_norm: layer_norm,
    aten.prelu: prelu, aten.embedding: embedding, aten.glu: gated_halves,
    aten.roll: movement.roll, aten.index: movement.index, aten.unbind: movement.take_apart,
    aten.chunk: movement.split, aten.split: movement.split, aten.split_with_sizes: movement.split,
    aten.channel_shuffle: movement.shuffle, aten.native_channel_shuffle: movement.shuffle,
    aten.pad: movement.pad, aten.constant_pad_nd: movement.pad,
    aten.slice: movement.cut, aten.narrow: movement.cut,
    aten.max_pool1d: spatial(1), aten.max_pool2d: spatial(2), aten.max_pool3d: spatial(3),
    aten.max_pool2d_with_indices: spatial(2),
    aten.avg_pool1d: spatial(1), aten.avg_pool2d: spatial(2), aten.avg_pool3d: spatial(3),
    aten.adaptive_avg_pool1d: spatial(1), aten.adaptive_avg_pool2d: spatial(2),
    aten._adaptive_avg_pool2d: spatial(2), aten.adaptive_avg_pool3d: spatial(3),
    aten.adaptive_max_pool1d: spatial(1), aten.adaptive_max_pool2d: spatial(2),
    aten.upsample_nearest1d: spatial(1), aten.upsample_linear1d: spatial(1),
    aten.upsample_nearest2d: spatial(2), aten.upsample_bilinear2d: spatial(2),
    aten.upsample_bicubic2d: spatial(2), aten.upsample_nearest3d: spatial(3),
    aten.upsample_trilinear3d: spatial(3), aten._upsample_nearest_exact2d: spatial(2),
    aten._upsample_bilinear2d_aa: spatial(2), aten.grid_sampler: spatial(2), aten.grid_sampler_2d: spatial(2),
    aten.reflection_pad2d: spatial(2), aten.replication_pad2d: spatial(2),
    aten.fill_: same, aten.zero_: same, aten.copy_: pointwise, aten.copy: pointwise,
    aten.bernoulli_: same, aten.bernoulli: same, aten.uniform_: same, aten.normal_: same,
    aten.new_zeros: nothing, aten.new_ones: nothing, aten.new_full: nothing, aten.new_empty: nothing,
    aten._assert_tensor_metadata: nothing, aten.expand: stretch, aten.cosine_similarity: similarity,
}  # fmt: skip

_SAME = (
    "contiguous", "clone", "detach", "detach_", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy",
    "dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "native_dropout",
    "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "relu6", "relu6_", "rrelu",
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
)  # fmt: skip
_REDUCTIONS = ("prod", "logsumexp", "argmax", "argmin", "any", "all", "median")
_TALLIES = ("sum", "amax", "amin", "max", "min")
_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm")
_ALONG = ("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod")
_MOVEMENTS = (
    "view", "reshape", "_unsafe_view", "permute", "transpose", "transpose_", "t",
    "numpy_T", "movedim", "swapaxes", "unsqueeze", "unsqueeze_", "squeeze", "squeeze_", "flatten", "unflatten",
    "cat", "concat", "stack", "select", "repeat", "tile", "repeat_interleave", "flip",
    "pixel_shuffle", "pixel_unshuffle",
)  # fmt: skip

_RESHAPED_LIKE = ("view_as", "reshape_as", "expand_as")

for _names, _rule in (
    (_SAME, same), (_REDUCTIONS, reduction), (_TALLIES, tally), (_STATISTICS, statistic), (_ALONG, along),
    (_MOVEMENTS, movement.move),
    (_RESHAPED_LIKE, movement.move_like),
):  # fmt: skip
    for _name in _names:
        if hasattr(aten, _name):
            RULES[getattr(aten, _name)] = _rule


def rule_of(op: Any) -> Rule:
    """Rule of an operator of an exported graph; :func:`unknown` where there is none."""
    if isinstance(op, torch._ops.OpOverload):
        rule = RULES.get(op.overloadpacket)
        if torch.Tag.pointwise in op.tags and rule is None:
            return pointwise
        if rule is not None:
            return pointwise if torch.Tag.pointwise in op.tags and rule in (reduction, tally) else rule
    return unknown
