"""The table of ops against what it speaks of: ONNX's operators, torch's functions, and their values."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quantrim.graph.ops import EXACT_OPS, LINEAR_OPS, OF_ONNX, OF_TORCH, OPS, PRODUCT_OPS, having

#: One function of one tensor for each op whose facts can be tried alone.
FUNCTIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softmax": lambda x: F.softmax(x, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "global_avg_pool": lambda x: x.mean((2, 3)),
    "resize": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "reshape": lambda x: x.reshape(2, -1),
    "transpose": lambda x: x.transpose(1, 2),
    "split": lambda x: x.split(2, 1)[1],
    "slice": lambda x: x[:, 1:],
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "tile": lambda x: x.tile(1, 2, 1, 1),
    "depth_to_space": lambda x: F.pixel_shuffle(x, 2),
    "space_to_depth": lambda x: F.pixel_unshuffle(x, 2),
}


def images(seed: int) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def test_operators_of_onnx_exist() -> None:
    assert all(onnx.defs.has(kind) for kind in OF_ONNX)


def test_functions_of_torch_exist() -> None:
    spelled = [torch, F, Tensor]
    missing = [
        name
        for name in OF_TORCH
        if not any(hasattr(owner, form) for owner in spelled for form in (name, f"__{name}__", f"{name}_"))
    ]
    assert missing in ([], ["identity"])  # nn.Identity calls nothing


def test_no_name_stands_for_two_ops() -> None:
    kinds = [kind for op in OPS.values() for kind in op.onnx]
    functions = [function for op in OPS.values() for function in op.torch]
    assert len(kinds) == len(set(kinds))
    assert len(functions) == len(set(functions))


def test_facts_imply_each_other() -> None:
    assert having("moves") >= EXACT_OPS
    assert having("keeps_sign") & having("bounded") & having("near") >= EXACT_OPS
    assert LINEAR_OPS < PRODUCT_OPS


@pytest.mark.parametrize("op", sorted(FUNCTIONS))
def test_facts_hold_of_the_function(op: str) -> None:
    facts, function = OPS[op].facts, FUNCTIONS[op]
    for seed in range(5):
        x = images(seed)
        y = function(x)
        if "exact" in facts:
            assert set(y.ravel().tolist()) <= set(x.ravel().tolist())
        if "non_negative" in facts:
            assert (y >= 0).all()
        if "keeps_sign" in facts:
            assert (function(x.abs()) >= 0).all()
        if "bounded" in facts:
            assert function(x.abs()).max() <= x.abs().max() * (1 + 1e-12)
        if "homogeneous" in facts:
            torch.testing.assert_close(function(2.5 * x), 2.5 * y)


@pytest.mark.parametrize("op", sorted(set(FUNCTIONS) & having("result_unused")))
def test_gradients_do_not_need_the_result(op: str) -> None:
    x = images(0).requires_grad_()
    y = FUNCTIONS[op](x)
    with torch.no_grad():
        y.zero_()  # autograd refuses the backward pass if it wants the result
    y.sum().backward()
    assert x.grad is not None
