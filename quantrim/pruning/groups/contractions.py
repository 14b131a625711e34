"""Convolutions and matrix products: what they sum over is tied, what the weight adds comes out."""

from __future__ import annotations

import numpy as np

from quantrim.pruning.groups.slots import ChannelIds
from quantrim.pruning.groups.values import GraphCall, Result, Value
from quantrim.pruning.groups.walk import Walk, broadcast


def linear(walk: Walk, call: GraphCall) -> Result:
    """``x @ weight.T + bias`` over the last dimension."""
    value, weight = _operands(call)
    walk.tie(value.dims[-1], weight.dims[1], _reads_fixed(call))
    _weighted(walk, weight.dims[1], weight.dims[0])
    _tie_bias(walk, call, weight.dims[0])
    if value.dims[-1] is not None:
        walk.read_by.append((call.layer, value.dims[-1]))
    return Value(call.shapes[0], (*value.dims[:-1], weight.dims[0]))


def conv(walk: Walk, call: GraphCall) -> Result:
    """Convolutions of any rank and their transposes, from the functions of torch.nn.functional."""
    return _convolve(walk, call, "transpose" in call.name)


def convolution(walk: Walk, call: GraphCall) -> Result:
    """The general convolution, which has transposition as an argument."""
    return _convolve(walk, call, bool(call.arguments["transposed"]))


def _convolve(walk: Walk, call: GraphCall, transposed: bool) -> Result:
    value, weight = _operands(call)
    channel = 1 if len(value.shape) == len(weight.shape) else 0
    for slots in weight.dims[2:]:
        walk.freeze(slots, "positions of a kernel")
    groups = int(call.arguments.get("groups") or 1)
    tie = _tie_transposed if transposed else _tie_plain
    out = tie(walk, call, value.dims[channel], weight, groups)
    _tie_bias(walk, call, out)
    dims: list[ChannelIds | None] = [None] * len(call.shapes[0])
    dims[:channel] = value.dims[:channel]
    dims[channel] = out
    for slots in value.dims[channel + 1 :]:
        walk.freeze(slots, f"{call.name} works across channels in {call.place}")
    return Value(call.shapes[0], tuple(dims))


def _tie_plain(
    walk: Walk, call: GraphCall, slots: ChannelIds | None, weight: Value, groups: int
) -> ChannelIds | None:
    """Weight (out, in / groups, ...); returns the slots of the output's channels."""
    out, inner = weight.dims[0], weight.dims[1]
    if groups == 1:
        walk.tie(slots, inner, _reads_fixed(call))
        _weighted(walk, inner, out)
        return out
    if inner is None or out is None:
        walk.freeze(slots, _reads_fixed(call))
        return out
    if weight.shape[1] == 1:  # depthwise: an input channel goes with its whole group of outputs
        multiplier = weight.shape[0] // groups
        walk.tie(None if slots is None else np.repeat(slots, multiplier), out, _reads_fixed(call))
        _tie_blocks(walk, out, multiplier)
        walk.outputs_of.append(out)
        return out
    _tie_groups(walk, call, slots, inner, groups)
    walk.space.tie_rows(out.reshape(groups, -1))
    _weighted(walk, inner, out)
    return out


def _tie_transposed(
    walk: Walk, call: GraphCall, slots: ChannelIds | None, weight: Value, groups: int
) -> ChannelIds | None:
    """Weight (in, out / groups, ...); returns the slots of the output's channels."""
    inner, out = weight.dims[0], weight.dims[1]
    walk.tie(slots, inner, _reads_fixed(call))
    if groups == 1:
        _weighted(walk, inner, out)
        return out
    if inner is None or out is None:
        walk.freeze(inner, _reads_fixed(call))
        walk.freeze(out, _reads_fixed(call))
        return None
    if weight.shape[0] == groups:  # depthwise
        walk.freeze(out, f"channel multiplier of a depthwise {call.name} in {call.place}")
        walk.outputs_of.append(inner)
        return np.repeat(inner, weight.shape[1])
    walk.space.tie_rows(inner.reshape(groups, -1))
    _weighted(walk, inner, out)
    return np.tile(out, groups)


def _tie_groups(walk: Walk, call: GraphCall, slots: ChannelIds | None, inner: ChannelIds, groups: int) -> None:
    """Equal places of the groups shrink together, so that groups stay equal."""
    if slots is None:
        walk.freeze(inner, _reads_fixed(call))
        return
    rows = slots.reshape(groups, -1)
    walk.space.tie_rows(rows)
    walk.space.tie(rows[0], inner)


def _tie_blocks(walk: Walk, slots: ChannelIds, length: int) -> None:
    if length > 1:
        walk.space.tie_rows(slots.reshape(-1, length).T)


def _operands(call: GraphCall) -> tuple[Value, Value]:
    value, weight = call.tensor("input") or call.tensor("self"), call.tensor("weight")
    if value is None or weight is None:
        raise TypeError(f"{call.name} in {call.place} has no input or weight")
    return value, weight


def _weighted(walk: Walk, inner: ChannelIds | None, out: ChannelIds | None) -> None:
    if inner is not None:
        walk.inputs_of.append(inner)
    if out is not None:
        walk.outputs_of.append(out)


def _tie_bias(walk: Walk, call: GraphCall, out: ChannelIds | None) -> None:
    bias = call.tensor("bias")
    if bias is not None:
        walk.tie(out, bias.dims[0], f"bias of fixed size in {call.place}")


def _reads_fixed(call: GraphCall) -> str:
    return f"channels that can't be pruned, such as the model's input, meet in {call.place}"


def matmul(walk: Walk, call: GraphCall) -> Result:
    """Product of matrices or batches of them; inner dimensions are tied, batch dimensions aligned."""
    names = ("self", "other") if "other" in call.arguments else ("self", "mat2")
    first, second = (call.arguments[name] for name in names)
    if len(first.shape) < 2 or len(second.shape) < 2:
        for value in (first, second):
            walk.freeze_value(value, f"product with a vector in {call.place}")
        return call.untracked()
    walk.note_heads(call, first.shape[-1])
    walk.tie(first.dims[-1], second.dims[-2], f"product with a tensor of fixed size in {call.place}")
    lead = [Value(value.shape[:-2], value.dims[:-2]) for value in (first, second)]
    reason = f"batches of fixed size meet in {call.place}"
    batch = broadcast(walk, lead, call.shapes[0][:-2], reason)
    return Value(call.shapes[0], (*batch, first.dims[-2], second.dims[-1]))


def scaled_attention(walk: Walk, call: GraphCall) -> Result:
    """``softmax(q k^T * scale) v``; with the default scale the width of q and k is part of the result."""
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    reason = f"attention with tensors of fixed size in {call.place}"
    walk.note_heads(call, query.shape[-1])
    shared = walk.tie(query.dims[-1], key.dims[-1], reason)
    if call.arguments.get("scale") is None:
        walk.freeze(shared, f"the width of a head sets the scale of attention in {call.place}")
    walk.freeze(key.dims[-2], f"attention runs across channels in {call.place}")
    walk.freeze(value.dims[-2], f"attention runs across channels in {call.place}")
    lead = [Value(one.shape[:-2], one.dims[:-2]) for one in (query, key, value)]
    mask = call.tensor("attn_mask")
    if mask is not None and len(mask.shape) > 2:
        lead.append(Value(mask.shape[:-2], mask.dims[:-2]))
    batch = broadcast(walk, lead, call.shapes[0][:-2], reason)
    return Value(call.shapes[0], (*batch, query.dims[-2], value.dims[-1]))


def einsum(walk: Walk, call: GraphCall) -> Result:
    """Dimensions of one letter are tied; an ellipsis or a repeated letter within one tensor freezes."""
    equation = str(call.arguments["equation"]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms, values = left.split(","), list(call.tensors())
    plain = arrow and "." not in equation and all(len(set(term)) == len(term) for term in terms)
    if not plain:
        for value in values:
            walk.freeze_value(value, f"einsum {equation!r} in {call.place}")
        return call.untracked()
    letters: dict[str, ChannelIds | None] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, slots in zip(term, value.dims, strict=True):
            reason = f"einsum {equation!r} with a tensor of fixed size in {call.place}"
            letters[letter] = walk.tie(letters[letter], slots, reason) if letter in letters else slots
    for letter in set(letters) - set(right):
        if sum(letter in term for term in terms) == 1:  # summed within one tensor
            walk.doubt(letters[letter], f"channels are reduced by einsum in {call.place}")
    return Value(call.shapes[0], tuple(letters[letter] for letter in right))
