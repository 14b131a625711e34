"""Branches that are added up become one convolution (RepVGG, Ding et al. 2021; MobileOne, Vasu et al. 2022).

- "convolutions": Conv_a(x) + Conv_b(x) with equal strides is a convolution whose kernel is the sum of both, the
  smaller one laid into the larger one; grouped kernels become block-diagonal ones where the groups differ;
- "identity": Conv(x) + x, with as many channels in as out, stride 1 and no change of size, adds a one to the
  middle of the kernel;
- "in a row": Conv → Conv 1x1 without a function between them is one convolution with the product of the
  kernels, offered where that multiplies less.

A BatchNorm branch is a depthwise 1x1 convolution here, which normalising made of it. Exactness: to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

import numpy as np
import onnx_ir as ir

from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, given, operand, spell
from quantrim.rewrites.resize_order import copy_of, is_pointwise

_NAME = "branches"


def _find(draft: Draft) -> Iterator[Site]:
    for add in draft.nodes("Add"):
        yield from _sums(draft, add)
    for conv in draft.nodes("Conv"):
        before = given(conv, 0).producer()
        if before is None or before.op_type != "Conv" or draft.reader(before.outputs[0]) is not conv:
            continue
        if is_pointwise(conv) and _is_plain(before) and _saves(draft, before, conv):
            shapes = [draft.shape(value) for value in (before.inputs[0], before.inputs[1], conv.outputs[0])]
            yield Site(_NAME, "in a row", (str(conv.name), str(before.name)), spell(*shapes))


def _sums(draft: Draft, add: ir.Node) -> Iterator[Site]:
    convs = [value.producer() if value is not None else None for value in add.inputs]
    plain = [node for node in convs if node is not None and node.op_type == "Conv" and _is_plain(node)]
    plain = [node for node in plain if draft.reader(node.outputs[0]) is add]
    shapes = [draft.shape(value) for node in plain for value in (node.inputs[0], node.inputs[1])]
    names = tuple(str(node.name) for node in (add, *plain))
    results = {draft.shape(node.outputs[0]) for node in plain}
    if len(plain) == 2 and len(results) == 1 and plain[0].inputs[0] is plain[1].inputs[0] and _fit(*plain):
        yield Site(_NAME, "convolutions", names, spell(*shapes))
        return
    for node in plain:
        if any(value is node.inputs[0] for value in add.inputs) and _keeps_shape(draft, node):
            yield Site(_NAME, "identity", (str(add.name), str(node.name)), spell(*shapes))
            return


def _is_plain(conv: ir.Node) -> bool:
    """Whether a 2-D convolution has constant operands, explicit padding and no dilation."""
    weight, bias = array_of(conv.inputs[1]), operand(conv, 2)
    return (
        weight is not None
        and weight.ndim == 4
        and set(conv.attributes.get_ints("dilations", [1])) == {1}
        and conv.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and (bias is None or array_of(bias) is not None)
    )


def _pads(conv: ir.Node) -> list[int]:
    return list(conv.attributes.get_ints("pads", [0, 0, 0, 0]))


def _strides(conv: ir.Node) -> list[int]:
    return list(conv.attributes.get_ints("strides", [1, 1]))


def _kernel(conv: ir.Node) -> np.ndarray:
    weight = array_of(conv.inputs[1])
    assert weight is not None
    return weight


def _fit(one: ir.Node, two: ir.Node) -> bool:
    """Whether the kernel of one convolution can be laid into that of the other."""
    if _strides(one) != _strides(two) or len(_kernel(one)) != len(_kernel(two)):
        return False
    large, small = _by_size(one, two)
    return all(
        _pads(large)[axis] >= _pads(small)[axis]
        and _pads(large)[axis] - _pads(small)[axis] + _kernel(small).shape[2 + axis]
        <= _kernel(large).shape[2 + axis]
        for axis in (0, 1)
    )


def _by_size(one: ir.Node, two: ir.Node) -> tuple[ir.Node, ir.Node]:
    return (one, two) if _kernel(one)[0, 0].size >= _kernel(two)[0, 0].size else (two, one)


def _keeps_shape(draft: Draft, conv: ir.Node) -> bool:
    weight, pads = _kernel(conv), _pads(conv)
    inside = all(pads[axis] < weight.shape[2 + axis] for axis in (0, 1))
    same = draft.shape(conv.inputs[0]) == draft.shape(conv.outputs[0])
    return same and _strides(conv) == [1, 1] and inside


def _saves(draft: Draft, first: ir.Node, second: ir.Node) -> bool:
    """Whether two convolutions in a row multiply more than their product; padding must not meet a bias."""
    inner, outer = _kernel(first), _kernel(second)
    if first.attributes.get_int("group", 1) != 1:
        return False
    before = inner.size + outer.size
    return inner[0].size * len(outer) <= before


def _apply(draft: Draft, site: Site) -> None:
    last = draft.node(site.nodes[0])
    convs = [draft.node(name) for name in site.nodes[1:]]
    if site.form == "in a row":
        _in_a_row(draft, convs[0], last)
    elif site.form == "identity":
        conv = convs[0]
        channels, group = draft.shape(conv.inputs[0])[1], conv.attributes.get_int("group", 1)
        kernel = _kernel(conv).copy()
        rows = np.arange(channels)
        kernel[rows, rows % (channels // group), _pads(conv)[0], _pads(conv)[1]] += 1
        _put(draft, [conv, last], conv, kernel, array_of(operand(conv, 2)), group)
    else:
        _added(draft, convs[0], convs[1], last)


def _added(draft: Draft, one: ir.Node, two: ir.Node, add: ir.Node) -> None:
    large, small = _by_size(one, two)
    groups = [conv.attributes.get_int("group", 1) for conv in (large, small)]
    group = gcd(*groups)
    kernel, other = (_regrouped(_kernel(c), g, group) for c, g in zip((large, small), groups, strict=True))
    top, left = (_pads(large)[axis] - _pads(small)[axis] for axis in (0, 1))
    kernel = kernel.copy()
    kernel[:, :, top : top + other.shape[2], left : left + other.shape[3]] += other
    biases = [bias for conv in (large, small) if (bias := array_of(operand(conv, 2))) is not None]
    _put(draft, [one, two, add], large, kernel, sum(biases[1:], biases[0]) if biases else None, group)


def _regrouped(kernel: np.ndarray, group: int, wanted: int) -> np.ndarray:
    """Kernel with fewer groups (a divisor of their number): zeros join what the groups kept apart."""
    merged = group // wanted
    if merged == 1:
        return kernel
    out, inputs = kernel.shape[:2]
    spread = np.zeros((out, inputs * merged, *kernel.shape[2:]), kernel.dtype)
    for row in range(out):
        place = (row // (out // group)) % merged
        spread[row, place * inputs : (place + 1) * inputs] = kernel[row]
    return spread


def _in_a_row(draft: Draft, first: ir.Node, second: ir.Node) -> None:
    inner, outer = _kernel(first).astype(np.float64), _kernel(second)[:, :, 0, 0].astype(np.float64)
    kernel = np.einsum("om,micd->oicd", outer, inner).astype(np.float32)
    inner_bias, outer_bias = (array_of(operand(conv, 2)) for conv in (first, second))
    bias = np.zeros(len(outer)) if outer_bias is None else outer_bias.astype(np.float64)
    if inner_bias is not None:
        bias = bias + outer @ inner_bias.astype(np.float64)
    _put(draft, [first, second], first, kernel, bias.astype(np.float32), 1)


def _put(
    draft: Draft, old: list[ir.Node], like: ir.Node, kernel: np.ndarray, bias: np.ndarray | None, group: int
) -> None:
    """Replace nodes by one convolution with strides and padding of one of them."""
    name = str(like.name)
    operands = [like.inputs[0], draft.constant(f"{name}_merged", kernel)]
    if bias is not None:
        operands.append(draft.constant(f"{name}_merged_bias", bias))
    made = copy_of(like, operands)
    made.attributes["group"] = ir.AttrInt64("group", group)
    draft.replace(old, [made])


BRANCHES = Rewrite(_NAME, "rounding", _find, _apply)
