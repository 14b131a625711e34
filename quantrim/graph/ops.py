"""Canonical ops and what is true of each: the one table that every room reads.

A row names the op, the ONNX operators and torch functions that it stands for, and its facts:

``linear``
    multiplies an activation with a constant weight.
``product``
    multiplies two tensors, of which the second may be a weight.
``hidden_product``
    multiplies activations inside, where no quantizer reaches.
``moves``
    moves values; each one that comes out was there before, or is a constant.
``exact``
    moves values and brings in nothing else: codes stay codes of the same scale.
``non_negative``
    is never negative, whatever it reads.
``keeps_sign``
    is never negative where nothing that it reads is.
``bounded``
    is never larger than the largest value that it reads.
``near``
    is where its inputs are: a little below zero when those are.
``smooth``
    is smooth, or at least defined, around every value.
``homogeneous``
    f(a x) = a f(x) for every a > 0.
``result_unused``
    its gradients don't need its result.

What an *engine* does with an op stands in :mod:`quantrim.targets`; how channels flow through torch's operators
in :mod:`quantrim.pruning.groups.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

Fact = Literal[
    "linear", "product", "moves", "exact", "non_negative", "keeps_sign", "bounded", "near", "smooth",
    "homogeneous", "result_unused", "hidden_product",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Op:
    """A row of the table.

    Attributes:
        name: canonical name.
        onnx: op types of ONNX.
        torch: names of functions, without leading and trailing underscores, so that ``relu``, ``relu_`` and
            ``Tensor.relu`` share an entry, as do ``add`` and ``__add__``.
        facts: what is true of it.
    """

    name: str
    onnx: tuple[str, ...]
    torch: tuple[str, ...]
    facts: frozenset[str]


def _op(name: str, onnx: str = "", torch: str = "", facts: str = "") -> Op:
    words = frozenset(facts.split())
    assert words <= set(get_args(Fact)), f"{name}: {words}"
    return Op(name, tuple(onnx.split()), tuple(torch.split()), words)


_MOVES = "moves exact keeps_sign bounded near"
_HIDDEN_PRODUCTS = (
    "multi_head_attention_forward flex_attention einsum tensordot addmm addbmm baddbmm addmv addr mv dot vdot "
    "inner outer ger kron chain_matmul multi_dot bilinear cdist conv_tbc deform_conv2d "
    "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
)

OPS = {op.name: op for op in (
    _op("conv", "Conv", "conv1d conv2d conv3d", "linear product smooth result_unused"),
    _op("conv_transpose", "ConvTranspose", "conv_transpose1d conv_transpose2d conv_transpose3d",
        "linear product smooth result_unused"),
    _op("linear", "", "linear", "linear product smooth result_unused"),
    _op("matmul", "", "matmul mm bmm rmatmul", "product smooth"),
    _op("einsum", "Einsum"),
    _op("scaled_dot_product_attention", "", "", "smooth hidden_product"),
    _op("recurrent", "LSTM GRU RNN", "lstm gru rnn_tanh rnn_relu", "hidden_product"),
    _op("grid_sample", "GridSample", "grid_sample grid_sampler"),
    *(_op(name, "", "", "hidden_product") for name in _HIDDEN_PRODUCTS.split()),
    _op("batch_norm", "BatchNormalization", "batch_norm", "smooth result_unused"),
    _op("layer_norm", "LayerNormalization", "layer_norm", "smooth"),
    _op("instance_norm", "InstanceNormalization"),
    _op("relu", "Relu", "relu", "non_negative keeps_sign bounded smooth homogeneous"),
    _op("clip", "Clip", "relu6 hardtanh clamp clip clamp_min clamp_max", "keeps_sign smooth"),
    _op("leaky_relu", "LeakyRelu", "leaky_relu", "smooth homogeneous"),
    _op("prelu", "PRelu", "prelu", "smooth"),
    _op("elu", "Elu", "elu", "smooth"),
    _op("gelu", "Gelu", "gelu", "smooth"),
    _op("sigmoid", "Sigmoid", "sigmoid", "non_negative smooth"),
    _op("hard_sigmoid", "HardSigmoid", "hardsigmoid", "non_negative smooth"),
    _op("hard_swish", "HardSwish", "hardswish", "smooth"),
    _op("swish", "", "silu", "smooth"),
    _op("mish", "Mish", "mish", "smooth"),
    _op("tanh", "Tanh", "tanh", "smooth"),
    _op("erf", "Erf"),
    _op("softplus", "Softplus", "softplus", "smooth"),
    _op("softmax", "Softmax", "softmax", "non_negative smooth"),
    _op("argmax", "ArgMax"),
    _op("add", "Add", "add iadd radd", "keeps_sign near result_unused"),
    _op("sub", "Sub", "sub isub rsub subtract", "smooth"),
    _op("mul", "Mul", "mul imul rmul multiply", "keeps_sign near"),
    _op("div", "Div", "div idiv itruediv truediv rtruediv divide true_divide"),
    _op("concat", "Concat", "cat concat concatenate", "keeps_sign bounded near result_unused"),
    _op("avg_pool", "AveragePool", "avg_pool1d avg_pool2d avg_pool3d", "keeps_sign bounded near result_unused"),
    _op("global_avg_pool", "GlobalAveragePool", "", "keeps_sign bounded near"),
    _op("mean", "ReduceMean", "mean", "near"),
    _op("resize", "Resize", "interpolate upsample", "keeps_sign near"),
    _op("max_pool", "MaxPool", "", _MOVES),
    _op("reshape", "Reshape", "reshape view unflatten", _MOVES),
    _op("flatten", "Flatten", "flatten", _MOVES),
    _op("squeeze", "Squeeze", "squeeze", _MOVES),
    _op("unsqueeze", "Unsqueeze", "unsqueeze", _MOVES),
    _op("transpose", "Transpose", "transpose permute swapaxes movedim t moveaxis channel_shuffle", _MOVES),
    _op("split", "Split", "split chunk", _MOVES),
    _op("slice", "Slice", "getitem narrow select", _MOVES),
    _op("gather", "Gather", "", _MOVES),
    _op("expand", "Expand", "expand", _MOVES),
    _op("tile", "Tile", "", _MOVES),
    _op("identity", "Identity", "", _MOVES),
    _op("dropout", "Dropout", "", _MOVES),  # of a file, where it does nothing
    _op("depth_to_space", "DepthToSpace", "pixel_shuffle", _MOVES),
    _op("space_to_depth", "SpaceToDepth", "pixel_unshuffle", _MOVES),
    _op("pad", "Pad", "pad", "moves keeps_sign near"),  # brings in a constant of its own
    _op("alias", "", "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout contiguous clone "
        "detach to float identity"),  # hands on what it was given, as far as quantization is concerned
)}  # fmt: skip


@cache
def having(fact: Fact) -> frozenset[str]:
    """Names of the canonical ops that a fact is true of."""
    return frozenset(op.name for op in OPS.values() if fact in op.facts)


#: ONNX op type → canonical op. Gemm and MatMul are told apart by their operands.
OF_ONNX = {kind: op.name for op in OPS.values() for kind in op.onnx}
#: Bare name of a torch function → canonical op.
OF_TORCH = {function: op.name for op in OPS.values() for function in op.torch}
LINEAR_OPS = having("linear")
PRODUCT_OPS = having("product")
EXACT_OPS = having("exact")
