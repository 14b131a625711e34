"""A rewritten model computes what the original computes: asked of ONNX Runtime on every use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from quantrim.errors import ModelError
from quantrim.graph.core import comparable, ending_at
from quantrim.graph.normalize import EQUAL_TOLERANCE, relative_distance, run_batches
from quantrim.graph.ports import Feed

#: Classes that may differ, where two logits are equal to rounding.
_TIES = 1e-3
#: Codes of a quantized output may differ by one where a value lay on the edge of two, and so many of them.
_EDGES = 1e-3


def prove(original: ir.Model, rewritten: ir.Model, feeds: Sequence[Feed]) -> float:
    """Largest distance between the outputs of two models on the same inputs.

    Float outputs must be equal to rounding (relative L2 distance up to 1e-4, none NaN that was none), or codes
    of a quantizer that are equal but for one in a thousand, at the edge between two; integers (classes) are
    equal but for one in a thousand, where two logits tie.

    Models that select by value are compared on what the selection reads; both must name it alike.

    Args:
        original: the model before.
        rewritten: the model after.
        feeds: inputs of both; at least one. More sizes of a dynamic batch prove more.

    Returns:
        The largest relative L2 distance of a float output.

    Raises:
        ModelError: an output differs by more, or the selection would read others; names it.
    """
    worst, names = 0.0, comparable(original)
    original, rewritten = ending_at(original, names), ending_at(rewritten, names)
    for before, after in zip(run_batches(original, feeds), run_batches(rewritten, feeds), strict=True):
        for name, expected in before.items():
            worst = max(worst, _compare(name, expected, after[name]))
    return worst


def _compare(name: str, expected: np.ndarray, got: np.ndarray) -> float:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise ModelError(
            f"a rewrite changed output {name!r} from {expected.dtype}{list(expected.shape)} to "
            f"{got.dtype}{list(got.shape)}. Please report this model."
        )
    if not np.issubdtype(expected.dtype, np.floating):
        share = float(np.mean(expected != got)) if expected.size else 0.0
        if share > _TIES:
            raise ModelError(f"a rewrite changed {share:.1%} of output {name!r}. Please report this model.")
        return 0.0
    distance = relative_distance(expected, got)
    if not distance <= EQUAL_TOLERANCE and not _on_the_same_grid(expected, got):
        raise ModelError(
            f"a rewrite changed output {name!r} by {distance:.1e} (relative L2). Please report this model."
        )
    return distance


def _on_the_same_grid(expected: np.ndarray, got: np.ndarray) -> bool:
    """Whether both hold the same codes of a quantizer, all but a few at the edge between two."""
    step = _step(expected)
    if step is None:
        return False
    codes = np.rint((got - expected) / step)
    whole = np.abs((got - expected) / step - codes).max(initial=0.0) < 1e-3
    return bool(whole and np.abs(codes).max(initial=0.0) <= 1 and np.mean(codes != 0) <= _EDGES)


def _step(values: np.ndarray) -> float | None:
    """Distance of neighbouring values of a quantized tensor; None where there are more than 256 of them."""
    levels = np.unique(values)
    if not 2 <= levels.size <= 256:
        return None
    return float(np.diff(levels).min())
