"""A space-to-depth stem folded into its convolution.

YOLOX's Focus (four strided slices side by side) and SpaceToDepth sort the pixels of every b x b block into
channels. The convolution behind, k x k with stride s, is then a convolution bk x bk with stride bs over the
image itself: weight[o, c, b·y + dy, b·x + dx] = weight[o, block(dy, dx, c), y, x]. It sums the same products.

Exactness: to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, given, operand, spell

_NAME = "space-to-depth stem"
#: (row, column) in the block and channel that each input channel of the convolution comes from.
_Sources = list[tuple[int, int, int]]


def _find(draft: Draft) -> Iterator[Site]:
    for conv in draft.nodes("Conv"):
        weight, before = array_of(conv.inputs[1]), given(conv, 0).producer()
        dense = conv.attributes.get_int("group", 1) == 1 and weight is not None and weight.ndim == 4
        plain = conv.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        if before is None or not dense or not plain or set(conv.attributes.get_ints("dilations", [1])) != {1}:
            continue
        block = _block(draft, before)
        if block is not None and draft.reader(before.outputs[0]) is conv:
            image, _, _, nodes = block
            key = spell(draft.shape(image), weight.shape, draft.shape(conv.outputs[0]))  # type: ignore[union-attr]
            yield Site(_NAME, "folded", (str(conv.name), *(str(node.name) for node in nodes)), key)


def _block(draft: Draft, node: ir.Node) -> tuple[ir.Value, int, _Sources, list[ir.Node]] | None:
    """Image, block size, source of each channel, and the nodes of a space-to-depth that ends in ``node``."""
    if node.op_type == "SpaceToDepth":
        image, size = given(node, 0), node.attributes.get_int("blocksize", 1)
        channels = draft.shape(image)[1]
        sources = [(y, x, c) for y in range(size) for x in range(size) for c in range(channels)]
        return image, size, sources, [node]
    if node.op_type != "Concat" or node.attributes.get_int("axis", 0) != 1:
        return None
    return _focus(draft, node)


def _focus(draft: Draft, concat: ir.Node) -> tuple[ir.Value, int, _Sources, list[ir.Node]] | None:
    nodes, sources, images, blocks = [concat], [], set(), set()
    for value in concat.inputs:
        steps: dict[int, tuple[int, int]] = {}
        while value is not None and (maker := value.producer()) is not None and maker.op_type == "Slice":
            found = _strided(draft, maker)
            if found is None or found.keys() & steps.keys():
                return None
            steps |= found
            nodes.append(maker)
            value = maker.inputs[0]
        if value is None or steps.keys() != {2, 3} or len({step for _, step in steps.values()}) != 1:
            return None
        images.add(value)
        blocks.add(steps[2][1])
        shape = draft.shape(value)
        if not shape or any(size % steps[2][1] for size in shape[2:]):
            return None
        sources += [(steps[2][0], steps[3][0], channel) for channel in range(shape[1])]
    if len(images) != 1 or len(blocks) != 1:
        return None
    return images.pop(), blocks.pop(), sources, list(dict.fromkeys(nodes))


def _strided(draft: Draft, node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """Axis → (first index, step) of a Slice that goes to the end of each axis; None for any other."""
    starts, ends, axes, steps = (array_of(operand(node, position)) for position in (1, 2, 3, 4))
    shape = draft.shape(node.inputs[0])
    if starts is None or ends is None or axes is None or not shape:
        return None
    strides = np.ones_like(starts) if steps is None else steps
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, strides, strict=True):
        axis = int(axis) % len(shape)
        if end < shape[axis] - (step - 1) + start or not 0 <= start < step:
            return None
        found[axis] = (int(start), int(step))
    return found


def _apply(draft: Draft, site: Site) -> None:
    conv = draft.node(site.nodes[0])
    before = given(conv, 0).producer()
    assert before is not None
    block = _block(draft, before)
    assert block is not None
    image, size, sources, nodes = block
    weight = array_of(conv.inputs[1])
    assert weight is not None
    high, wide = weight.shape[2:]
    spread = np.zeros((len(weight), draft.shape(image)[1], size * high, size * wide), np.float32)
    for position, (row, column, channel) in enumerate(sources):
        spread[:, channel, row::size, column::size] += weight[:, position]
    attributes = dict(conv.attributes)
    for name, neutral in (("strides", [1, 1]), ("pads", [0, 0, 0, 0])):
        attributes[name] = ir.AttrInt64s(name, [size * v for v in conv.attributes.get_ints(name, neutral)])
    attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [size * high, size * wide])
    constant = draft.constant(f"{given(conv, 1).name}_spread", spread)
    made = ir.node("Conv", [image, constant, *conv.inputs[2:]], attributes, name=str(conv.name))
    unread = [node for node in nodes if _only_for(node, conv, nodes)]
    draft.replace([*reversed(unread), conv], [made])


def _only_for(node: ir.Node, conv: ir.Node, nodes: list[ir.Node]) -> bool:
    readers = {use.node for use in node.outputs[0].uses()}
    return readers <= {conv, *nodes} and not node.outputs[0].is_graph_output()


SPACE_TO_DEPTH_STEM = Rewrite(_NAME, "rounding", _find, _apply)
