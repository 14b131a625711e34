"""What stands behind a convolution and belongs into its weight and bias.

1. The weight of a convolution that is called several times is one constant. Where a BatchNorm follows, each
   call gets a copy of its own, for what is folded into one of them must not change the others.
2. ``Conv → Mul → Add`` by constants of one value a channel is a BatchNorm written out, as torchvision's
   FrozenBatchNorm2d is, and is folded like one (:func:`quantrim.graph.addends.fold_affine`).
"""

from __future__ import annotations

import onnx_ir as ir

from quantrim.graph.constants import new_constant


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
            layer.replace_input_with(
                position, new_constant(model, f"{value.name}@{layer.outputs[0].name}", array)
            )


def is_channelwise(shape: tuple[int, ...], dims: int, channels: int) -> bool:
    """Whether a constant of this shape has one value for each channel of a tensor of ``dims`` dimensions."""
    whole = (1,) * (dims - len(shape)) + tuple(shape)
    return channels > 1 and dims > 2 and whole == (1, channels, *[1] * (dims - 2))


def _producer(node: ir.Node, position: int) -> ir.Node | None:
    value = node.inputs[position]
    return None if value is None else value.producer()
