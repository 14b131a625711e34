"""A linear or cubic Resize as two matrix products.

Interpolation is linear and separable: for every channel Y = A X Bᵀ, where A (height out x height in) and
B (width out x width in) are what the same Resize makes of the identity. That holds for every coordinate
transformation (half_pixel, align_corners, asymmetric, ...) without extrapolation. The product over the axis
that makes fewer multiplications comes first.

Why it is faster: OpenVINO's Interpolate runs channels-last and leaves a layout conversion behind it, which at
the output of a segmentation net costs more than the net; a product is planar from the start.

Exactness: to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir

from quantrim.graph.session import reference_session
from quantrim.rewrites.base import Draft, Rewrite, Site, array_of, keep_float, operand, spell

_NAME = "resize as matmuls"
_REASON = "interpolation of a rewritten Resize"
_MODES = frozenset({"linear", "cubic"})
_ATTRIBUTES = ("mode", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside")


def _find(draft: Draft) -> Iterator[Site]:
    for node in draft.nodes("Resize"):
        before, after = draft.shape(node.inputs[0]), draft.shape(node.outputs[0])
        if is_spatial(node, before, after, _MODES):
            key = f"{settings_of(node)} {spell(before, after)}"
            yield Site(_NAME, "columns first" if _columns_first(before, after) else "rows first",
                       (str(node.name),), key)  # fmt: skip


def is_spatial(node: ir.Node, before: tuple[int, ...], after: tuple[int, ...], modes: frozenset[str]) -> bool:
    """Whether a Resize changes height or width of images, and nothing else, in one of these modes."""
    plain = (
        len(before) == len(after) == 4
        and before[:2] == after[:2]
        and before[2:] != after[2:]
        and node.attributes.get_string("mode", "nearest") in modes
        and not node.attributes.get_int("antialias", 0)
        and node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
        and "axes" not in node.attributes
    )
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return plain and transformation != "tf_crop_and_resize"


def settings_of(node: ir.Node) -> str:
    """Mode, transformation and scales of a Resize: what its matrices depend on beside the sizes."""
    words = [str(node.attributes[name].value) for name in _ATTRIBUTES if name in node.attributes]
    scales = array_of(operand(node, 2))
    return " ".join(words + ([] if scales is None else [f"scales {scales.tolist()}"]))


def _columns_first(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether resizing the width first takes fewer multiplications."""
    (height, width), (high, wide) = before[2:], after[2:]
    columns = height * width * wide + high * height * wide
    rows = high * height * width + high * width * wide
    return columns < rows


def _apply(draft: Draft, site: Site) -> None:
    node = draft.node(site.nodes[0])
    before, after = draft.shape(node.inputs[0]), draft.shape(node.outputs[0])
    steps = [axis for axis in (2, 3) if before[axis] != after[axis]]
    if site.form == "columns first":
        steps.reverse()
    tensor, made = node.inputs[0], []
    for axis in steps:
        matrix = interpolation(node, axis, before[axis], after[axis])
        name = f"{node.name}/{'rows' if axis == 2 else 'columns'}"
        constant = draft.constant(f"{name}_matrix", matrix if axis == 2 else np.ascontiguousarray(matrix.T))
        operands = [constant, tensor] if axis == 2 else [tensor, constant]
        made.append(keep_float(ir.node("MatMul", operands, name=name), _REASON))
        tensor = made[-1].outputs[0]
    draft.replace([node], made)


def interpolation(node: ir.Node, axis: int, size: int, wanted: int) -> np.ndarray:
    """Matrix by which a Resize acts on one axis: what it makes of the identity.

    Args:
        node: the Resize; its attributes and scales count.
        axis: 2 for the height, 3 for the width.
        size: of the axis before.
        wanted: of the axis after.

    Returns:
        float32[wanted, size].
    """
    scales = array_of(operand(node, 2))
    scale = float(scales[axis]) if scales is not None and scales.size == 4 else None
    attributes = tuple((name, node.attributes[name].value) for name in _ATTRIBUTES if name in node.attributes)
    return _resized_identity(attributes, size, wanted, scale)


@lru_cache(maxsize=64)
def _resized_identity(
    attributes: tuple[tuple[str, object], ...], size: int, wanted: int, scale: float | None
) -> np.ndarray:
    """What ONNX Runtime's Resize, with such attributes, makes of the rows of the identity."""
    value = ir.Value(name="x", shape=ir.Shape([1, 1, size, size]), type=ir.TensorType(ir.DataType.FLOAT))
    if scale is None:
        operands = [None, None, _fixed("sizes", np.array([1, 1, wanted, size], np.int64))]
    else:
        operands = [None, _fixed("scales", np.array([1, 1, scale, 1], np.float32))]
    node = ir.node("Resize", [value, *operands], dict(attributes))  # type: ignore[arg-type]
    node.outputs[0].name = "y"
    node.outputs[0].dtype = ir.DataType.FLOAT
    constants = [one for one in operands if one is not None]
    graph = ir.Graph([value], node.outputs, nodes=[node], initializers=constants, opset_imports={"": 18},
                     name="resize")  # fmt: skip
    session = reference_session(ir.Model(graph, ir_version=onnx.IR_VERSION_2023_5_5), threads=1)
    return session.run(None, {"x": np.eye(size, dtype=np.float32)[None, None]})[0][0, 0]


def _fixed(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


RESIZE_AS_MATMULS = Rewrite(_NAME, "rounding", _find, _apply)
