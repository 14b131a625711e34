"""Training's scales equal those of the file writer to the last bit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import quantrim
from quantrim.ranges import activation_scale, weight_scales
from quantrim.ranges.estimators import Range
from quantrim.ranges.torch_mirror import abs_max_scale, affine_scale, symmetric_scale

#: Zero, denormals, and values next to the ends of float32.
EDGES = [float(np.float32(value)) for value in (0.0, 1e-45, 1e-38, 1e-8, 1.0, 3e38)]
ENDS = st.one_of(st.sampled_from(EDGES), st.floats(0, 2.0**99, width=32))


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


@settings(max_examples=300, deadline=None)
@given(ENDS, ENDS)
@example(1e-45, 0.0)
@example(1e-30, 3e38)
def test_affine_codes_have_the_same_scale_and_zero_point(below: float, above: float) -> None:
    low, high = float(np.float32(-below)), float(np.float32(above))
    expected = activation_scale(Range(low, high), "u8")
    scale, zero_point = affine_scale(tensor(low), tensor(high), 0, 255)
    assert float(scale) == expected.scale
    assert int(zero_point) == expected.zero_point


@settings(max_examples=200, deadline=None)
@given(ENDS, ENDS)
def test_symmetric_codes_have_the_same_scale(below: float, above: float) -> None:
    low, high = float(np.float32(-below)), float(np.float32(above))
    expected = activation_scale(Range(low, high), "s8")
    assert float(symmetric_scale(torch.maximum(-tensor(low), tensor(high)), 127)) == expected.scale


WEIGHTS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    elements=st.one_of(st.sampled_from([*EDGES, -1.0, -3e38]), st.floats(-(2.0**99), 2.0**99, width=32)),
)


@settings(max_examples=300, deadline=None)
@given(WEIGHTS, st.sampled_from([0, 1, None]), st.sampled_from([1, 7, 63, 127]))
def test_weights_have_the_same_scales(weight: np.ndarray, axis: int | None, largest: int) -> None:
    expected = weight_scales(weight, axis, levels=largest)
    got = abs_max_scale(torch.from_numpy(weight), axis, largest).numpy().ravel()
    np.testing.assert_array_equal(got, expected)


def test_gradients_reach_the_range() -> None:
    low, high = tensor(-1.0).requires_grad_(), tensor(2.0).requires_grad_()
    affine_scale(low, high, 0, 255)[0].backward()
    assert float(high.grad) == pytest.approx(1 / 255)  # type: ignore[arg-type]
    assert float(low.grad) == pytest.approx(-1 / 255)  # type: ignore[arg-type]


def test_steps_of_codes_are_computed_in_one_room() -> None:
    root = Path(quantrim.__file__).parent
    stray = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] != "ranges"
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"/ 127\b", line)
    ]
    assert not stray
