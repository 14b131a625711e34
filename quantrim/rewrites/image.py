"""Image in, answer out: what a caller's numpy does before and behind a network moves into the file.

The input becomes uint8 (N, H, W, C), as a decoder gives it. Behind it stand Transpose, Cast and the subtraction
of the mean (in 0..255); the division by the standard deviation goes into the weights of the first convolutions
where nothing else reads the image, else it stands there too. Padding with zeros stays right: zero is the
mean before and after. The output may become the classes, or their probabilities.

Exactness: to rounding, for every uint8 image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from quantrim.errors import ConfigError, ModelError
from quantrim.rewrites.base import Draft, array_of, finish, given

Answer = Literal["logits", "classes", "probabilities"]


def take_images(model: ir.Model, mean: Sequence[float], std: Sequence[float]) -> ir.Model:
    """Copy of a model that takes uint8 images (N, H, W, C) where it took (x / 255 - mean) / std, NCHW float32.

    Args:
        model: float or quantized model; its first input is float32 (N, C, H, W).
        mean: per channel, in 0..1.
        std: per channel, in 0..1, none of them 0.

    Raises:
        ModelError: the first input is no float32 image.
        ConfigError: mean or std don't fit its channels.
    """
    draft = Draft(model.clone(), {})
    old = draft.model.graph.inputs[0]
    if old.dtype != ir.DataType.FLOAT or old.shape is None or len(old.shape) != 4:
        raise ModelError(f"input {old.name!r} is no float32 image (N, C, H, W), but {old.dtype} {old.shape}.")
    batch, channels, height, width = old.shape
    _require_channels(channels, mean, std)
    image = ir.Value(name=old.name, shape=ir.Shape([batch, height, width, channels]))
    image.type = ir.TensorType(ir.DataType.UINT8)
    real, scale = _centred(draft, image, mean), 1 / (255 * np.asarray(std, np.float64))
    old.name = f"{old.name}_prepared"
    folded = _fold(draft, old, scale)
    if not folded:
        factor = draft.constant(f"{old.name}_factor", scale.astype(np.float32).reshape(1, -1, 1, 1))
        real.append(_float(ir.node("Mul", [real[-1].outputs[0], factor], name="image/scaled")))
    for value in (made.outputs[0] for made in real):
        value.name = value.name or f"{_maker(value)}_out"
    ir.convenience.replace_all_uses_with(old, real[-1].outputs[0])
    draft.model.graph.inputs[0] = image
    first = next(iter(draft.model.graph))
    draft.model.graph.insert_before(first, real)
    return finish(draft)


def _maker(value: ir.Value) -> str:
    node = value.producer()
    assert node is not None
    return str(node.name)


def _require_channels(channels: object, mean: Sequence[float], std: Sequence[float]) -> None:
    if not len(mean) == len(std) == channels:
        raise ConfigError(f"mean has {len(mean)} and std {len(std)} values; the image has {channels} channels.")
    if any(value <= 0 for value in std):
        raise ConfigError(f"std is {list(std)}; every value must be positive.", field="std")


def _centred(draft: Draft, image: ir.Value, mean: Sequence[float]) -> list[ir.Node]:
    """Transpose, Cast, and 255 times the mean subtracted."""
    planes = ir.node("Transpose", [image], {"perm": [0, 3, 1, 2]}, name="image/planes")
    planes.outputs[0].dtype = ir.DataType.UINT8
    cast = _float(ir.node("Cast", [planes.outputs[0]], {"to": ir.DataType.FLOAT.value}, name="image/float"))
    if not any(mean):
        return [planes, cast]
    values = (255 * np.asarray(mean, np.float64)).astype(np.float32).reshape(1, -1, 1, 1)
    constant = draft.constant(f"{image.name}_mean", values)
    return [planes, cast, _float(ir.node("Sub", [cast.outputs[0], constant], name="image/centred"))]


def _float(node: ir.Node) -> ir.Node:
    node.outputs[0].dtype = ir.DataType.FLOAT
    return node


def _fold(draft: Draft, tensor: ir.Value, scale: np.ndarray) -> bool:
    """Multiply the weights of the convolutions that read a tensor; False where something else reads it."""
    uses = list(tensor.uses())
    plain = [
        node
        for node, position in uses
        if node.op_type == "Conv"
        and position == 0
        and node.attributes.get_int("group", 1) == 1
        and array_of(node.inputs[1]) is not None
    ]
    if len(plain) != len(uses) or tensor.is_graph_output():
        return False
    for conv in plain:
        weight = array_of(conv.inputs[1])
        assert weight is not None
        scaled = (weight * scale.reshape(1, -1, *([1] * (weight.ndim - 2)))).astype(np.float32)
        conv.replace_input_with(1, draft.constant(f"{given(conv, 1).name}_scaled", scaled))
    return True


def give_answer(model: ir.Model, answer: Answer) -> ir.Model:
    """Copy of a model whose first output is, over axis 1, the classes (int64) or their probabilities.

    Args:
        model: its first output are logits (N, C, ...).
        answer: "classes", "probabilities", or "logits" for the model as it is.
    """
    draft = Draft(model.clone(), {})
    if answer == "logits":
        return draft.model
    logits = draft.model.graph.outputs[0]
    name, shape = str(logits.name), logits.shape
    logits.name = f"{name}_logits"
    if answer == "classes":
        node = ir.node("ArgMax", [logits], {"axis": 1, "keepdims": 0}, name=f"{name}_classes")
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        node.outputs[0].shape = None if shape is None else ir.Shape([*shape[:1], *shape[2:]])
    else:
        node = ir.node("Softmax", [logits], {"axis": 1}, name=f"{name}_probabilities")
        node.outputs[0].type, node.outputs[0].shape = logits.type, shape
    node.outputs[0].name = name
    draft.model.graph.append(node)
    draft.model.graph.outputs[0] = node.outputs[0]
    return draft.model
