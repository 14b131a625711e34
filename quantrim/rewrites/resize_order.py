"""A Resize before or behind the 1x1 convolution that it commutes with.

A 1x1 convolution mixes channels, a Resize mixes pixels, so the order doesn't matter, provided that the weights
of a resized pixel sum to one (else the bias would be scaled). Forms:

- "convolution first": Resize → Conv 1x1 becomes Conv 1x1 → Resize;
- "resize first": the other way round, which pays when the Resize makes images smaller;
- "split": Conv 1x1 over Concat(x₁, Resize(x₂), ...) becomes Conv₁(x₁) + Resize(Conv₂(x₂)) + ...: the
  heads of HRNet, SegFormer and feature pyramids compute at low resolution what they computed at the highest.

Offered where multiplications are saved. Exactness: to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, given, operand, spell
from quantrim.rewrites.resize_matmul import interpolation, is_spatial, settings_of

_NAME = "resize order"
_MODES = frozenset({"linear", "cubic", "nearest"})


def _find(draft: Draft) -> Iterator[Site]:
    for conv in draft.nodes("Conv"):
        if not is_pointwise(conv):
            continue
        yield from _behind(draft, conv)
        yield from _before(draft, conv)
        yield from _concat(draft, conv)


def is_pointwise(conv: ir.Node) -> bool:
    """Whether a convolution has a constant 1x1 kernel, stride 1, one group and no padding."""
    weight, attributes = array_of(conv.inputs[1]), conv.attributes
    return (
        weight is not None
        and weight.shape[2:] == (1, 1)
        and attributes.get_int("group", 1) == 1
        and set(attributes.get_ints("strides", [1])) == {1}
        and not any(attributes.get_ints("pads", [0]))
        and (operand(conv, 2) is None or array_of(operand(conv, 2)) is not None)
    )


def _resize(draft: Draft, node: ir.Node | None) -> bool:
    """Whether a node is a Resize of images that keeps constants."""
    if node is None or node.op_type != "Resize":
        return False
    before, after = draft.shape(node.inputs[0]), draft.shape(node.outputs[0])
    if not is_spatial(node, before, after, _MODES):
        return False
    if node.attributes.get_string("mode", "nearest") == "nearest":
        return True
    matrices = [interpolation(node, axis, before[axis], after[axis]) for axis in (2, 3)]
    return all(np.allclose(matrix.sum(axis=1), 1, atol=1e-5) for matrix in matrices)


def _behind(draft: Draft, conv: ir.Node) -> Iterator[Site]:
    node = given(conv, 0).producer()
    if node is None or draft.reader(node.outputs[0]) is not conv or not _resize(draft, node):
        return
    before, after = draft.shape(node.inputs[0]), draft.shape(conv.outputs[0])
    if before[2] * before[3] < after[2] * after[3]:
        key = f"{settings_of(node)} {spell(before, after)}"
        yield Site(_NAME, "convolution first", (str(conv.name), str(node.name)), key)


def _before(draft: Draft, conv: ir.Node) -> Iterator[Site]:
    node = draft.reader(conv.outputs[0])
    if node is None or not _resize(draft, node):
        return
    before, after = draft.shape(conv.inputs[0]), draft.shape(node.outputs[0])
    if before[2] * before[3] > after[2] * after[3]:
        key = f"{settings_of(node)} {spell(before, after)}"
        yield Site(_NAME, "resize first", (str(conv.name), str(node.name)), key)


def _concat(draft: Draft, conv: ir.Node) -> Iterator[Site]:
    node = given(conv, 0).producer()
    if node is None or node.op_type != "Concat" or draft.reader(node.outputs[0]) is not conv:
        return
    if node.attributes.get_int("axis", 0) != 1:
        return
    resizes = _enlarging(draft, node)
    if resizes:
        shapes = [draft.shape(value) for value in node.inputs] + [draft.shape(conv.outputs[0])]
        names = (str(conv.name), str(node.name), *(str(one.name) for one in resizes))
        yield Site(_NAME, "split", names, f"{settings_of(resizes[0])} {spell(*shapes)}")


def _enlarging(draft: Draft, concat: ir.Node) -> list[ir.Node]:
    """The Resize nodes that enlarge inputs of a Concat and serve nothing else."""
    found = []
    for value in concat.inputs:
        node = value.producer() if value is not None else None
        if node is None or draft.reader(node.outputs[0]) is not concat or not _resize(draft, node):
            continue
        if draft.shape(node.inputs[0])[2] < draft.shape(node.outputs[0])[2]:
            found.append(node)
    return found


def _apply(draft: Draft, site: Site) -> None:
    conv, other = (draft.node(name) for name in site.nodes[:2])
    if site.form == "split":
        _split(draft, conv, other, set(site.nodes[2:]))
    elif site.form == "convolution first":
        mixed = copy_of(conv, [other.inputs[0], *conv.inputs[1:]])
        made = _resize_of(draft, other, mixed.outputs[0], draft.shape(conv.outputs[0])[1])
        draft.replace([other, conv], [mixed, *made])
    else:
        made = _resize_of(draft, other, given(conv, 0), draft.shape(conv.inputs[0])[1])
        draft.replace([conv, other], [*made, copy_of(conv, [made[-1].outputs[0], *conv.inputs[1:]])])


def _split(draft: Draft, conv: ir.Node, concat: ir.Node, resizes: set[str]) -> None:
    """Convolve every input of a Concat by itself, at its own resolution, and add the results up."""
    weight = array_of(conv.inputs[1])
    assert weight is not None
    resized: list[tuple[ir.Value, np.ndarray]] = []
    plain: list[tuple[ir.Value, np.ndarray]] = []
    start = 0
    for value in concat.inputs:
        assert value is not None
        channels = draft.shape(value)[1]
        producer, part = value.producer(), np.ascontiguousarray(weight[:, start : start + channels])
        is_resized = producer is not None and producer.name in resizes
        (resized if is_resized else plain).append((value, part))
        start += channels
    made: list[ir.Node] = []
    terms = [_at_full_size(draft, conv, plain, made)] if plain else []
    for position, (value, part) in enumerate(resized):
        node = value.producer()
        assert node is not None
        constant = draft.constant(f"{given(conv, 1).name}_part", part)
        operands = [node.inputs[0], constant]
        if not plain and position == 0 and operand(conv, 2) is not None:  # the bias counts once
            operands.append(conv.inputs[2])
        small = copy_of(conv, operands, f"{conv.name}/{node.name}")
        made += [small, *_resize_of(draft, node, small.outputs[0], weight.shape[0])]
        terms.append(made[-1].outputs[0])
    total = terms[0]
    for term in terms[1:]:
        made.append(ir.node("Add", [total, term], name=f"{conv.name}/sum"))
        total = made[-1].outputs[0]
    gone = [value.producer() for value, _ in resized]
    draft.replace([*(node for node in gone if node is not None), concat, conv], made)


def _at_full_size(
    draft: Draft, conv: ir.Node, parts: Sequence[tuple[ir.Value, np.ndarray]], made: list[ir.Node]
) -> ir.Value:
    """Convolution of the inputs that were not resized, with the bias."""
    tensor = parts[0][0]
    if len(parts) > 1:
        made.append(ir.node("Concat", [value for value, _ in parts], {"axis": 1}, name=f"{conv.name}/concat"))
        tensor = made[-1].outputs[0]
    weight = np.concatenate([part for _, part in parts], axis=1)
    constant = draft.constant(f"{given(conv, 1).name}_part", weight)
    made.append(copy_of(conv, [tensor, constant, *conv.inputs[2:]]))
    return made[-1].outputs[0]


def copy_of(node: ir.Node, operands: Sequence[ir.Value | None], name: str = "") -> ir.Node:
    """A node with the same attributes over other operands."""
    return ir.node(node.op_type, operands, dict(node.attributes), name=name or str(node.name))


def _resize_of(draft: Draft, node: ir.Node, tensor: ir.Value, channels: int) -> list[ir.Node]:
    """The same Resize of a tensor with another number of channels; its sizes, where given, name that number."""
    scales = array_of(operand(node, 2))
    if scales is not None and scales.size == 4:
        return [copy_of(node, [tensor, None, node.inputs[2]])]
    after = draft.shape(node.outputs[0])
    rest = np.array([channels, *after[2:]], np.int64)
    declared = given(node, 0).shape
    batch = declared[0] if declared is not None else None
    if isinstance(batch, int):
        return [
            copy_of(node, [tensor, None, None, draft.constant(f"{node.name}_sizes", np.array([batch, *rest]))])
        ]
    first = ir.node("Shape", [tensor], {"start": 0, "end": 1}, name=f"{node.name}/batch")
    first.outputs[0].dtype = ir.DataType.INT64
    operands = [first.outputs[0], draft.constant(f"{node.name}_sizes", rest)]
    sizes = ir.node("Concat", operands, {"axis": 0}, name=f"{node.name}/sizes")
    sizes.outputs[0].dtype = ir.DataType.INT64
    return [first, sizes, copy_of(node, [tensor, None, None, sizes.outputs[0]])]


RESIZE_ORDER = Rewrite(_NAME, "rounding", _find, _apply)
