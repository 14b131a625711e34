"""What stands behind a convolution and belongs into its weight and bias.

1. The weight of a convolution that is called several times is one constant. Where a BatchNorm follows, each
   call gets a copy of its own, for what is folded into one of them must not change the others.
2. ``Conv → Mul → Add`` by constants of one value a channel is a BatchNorm written out, as torchvision's
   FrozenBatchNorm2d is, and is folded like one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def own_weights_before_batch_norms(model: ir.Model) -> None:
    """Give every layer before a BatchNormalization a weight and a bias that nobody else reads."""
    for norm in list(model.graph):
        layer = _producer(norm, 0) if norm.op_type == "BatchNormalization" else None
        if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        for position, value in enumerate(layer.inputs[1:3], start=1):
            if value is None or value.const_value is None or len({node for node, _ in value.uses()}) < 2:
                continue
            array = value.const_value.numpy()
            layer.replace_input_with(position, _constant(model, f"{value.name}@{layer.outputs[0].name}", array))


def fold_channel_affine(model: ir.Model) -> None:
    """Fold ``Conv → Mul → Add`` by constants of one value a channel into the convolution."""
    for layer in list(model.graph):
        if layer.op_type != "Conv" or (weight := _array(layer, 1)) is None:
            continue
        factor, times = _channelwise(layer, "Mul", len(weight))
        shift, plus = _channelwise(times, "Add", len(weight)) if times is not None else (None, None)
        bias = _array(layer, 2)
        if factor is None or shift is None or plus is None or (len(layer.inputs) > 2 and bias is None):
            continue
        scaled = weight.astype(np.float64) * factor.reshape(-1, *[1] * (weight.ndim - 1))
        whole = (0.0 if bias is None else bias.astype(np.float64)) * factor + shift
        _replace(model, layer, plus, scaled, whole)


def _channelwise(node: ir.Node, kind: str, channels: int) -> tuple[np.ndarray | None, ir.Node | None]:
    """Constant of one value a channel that the only reader of a node applies, and that reader."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or value.shape is None:
        return None, None
    reader, position = uses[0]
    if reader.op_type != kind or reader.domain not in ("", "ai.onnx"):
        return None, None
    constant = _array(reader, 1 - position)
    if constant is None or not is_channelwise(constant.shape, len(value.shape), channels):
        return None, None
    return constant.astype(np.float64).reshape(-1), reader


def is_channelwise(shape: tuple[int, ...], dims: int, channels: int) -> bool:
    """Whether a constant of this shape has one value for each channel of a tensor of ``dims`` dimensions."""
    whole = (1,) * (dims - len(shape)) + tuple(shape)
    return channels > 1 and dims > 2 and whole == (1, channels, *[1] * (dims - 2))


def _replace(model: ir.Model, layer: ir.Node, last: ir.Node, weight: np.ndarray, bias: np.ndarray) -> None:
    """A convolution with other constants in the place of the old one and all up to ``last``."""
    old = last.outputs[0]
    operands = [
        layer.inputs[0],
        _constant(model, f"{old.name}_weight", weight.astype(np.float32)),
        _constant(model, f"{old.name}_bias", bias.astype(np.float32)),
    ]
    made = ir.node("Conv", operands, layer.attributes, name=layer.name)
    new = made.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    chain = [last, last.inputs[0].producer() if _reads(last, 0) else last.inputs[1].producer(), layer]  # type: ignore[union-attr]
    ir.convenience.replace_nodes_and_values(model.graph, last, chain, [made], [old], [new])  # type: ignore[arg-type]


def _reads(node: ir.Node, position: int) -> bool:
    """Whether an operand is computed."""
    return _producer(node, position) is not None and _array(node, position) is None


def _producer(node: ir.Node, position: int) -> ir.Node | None:
    value = node.inputs[position]
    return None if value is None else value.producer()


def _array(node: ir.Node, position: int) -> np.ndarray | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
