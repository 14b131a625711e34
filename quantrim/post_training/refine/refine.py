"""Run the refinements that were asked for, and keep those that help the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from quantrim.graph.core import ending_at
from quantrim.graph.normalize import run_batches
from quantrim.graph.view import Graph
from quantrim.judges.judgement import batch_of, distances
from quantrim.placement.plan import Plan
from quantrim.placement.qdq import write_qdq
from quantrim.post_training.refine.bias import correct_bias
from quantrim.post_training.refine.walk import Rounding, Step, walk
from quantrim.ranges import ActivationScale
from quantrim.ranges.codes import WeightCodes

Refinement = Literal["equalize", "bias", "adaround"]
REFINEMENTS: tuple[Refinement, ...] = ("equalize", "bias", "adaround")

Feeds = Sequence[Mapping[str, np.ndarray]]


def refine_weights(
    model: ir.Model,
    graph: Graph,
    plan: Plan,
    activations: Mapping[str, ActivationScale],
    weights: Mapping[str, WeightCodes],
    feeds: Feeds,
    refinements: Sequence[Refinement],
    remember: Callable[[Rounding], Rounding] = lambda rounding: rounding,
) -> dict[str, WeightCodes]:
    """Codes and biases after adaptive rounding and bias correction, in one walk over the model.

    Args:
        model: normalised float model.
        graph: its view.
        plan: where quantizers stand.
        activations: scales by tensor.
        weights: codes rounded to nearest.
        feeds: calibration batches.
        refinements: "adaround", "bias" or both; each layer is rounded first, then its bias corrected.
        remember: adaptive rounding with a memory; none by default.
    """
    rounding: Rounding = lambda step: step.codes  # noqa: E731
    if "adaround" in refinements:  # trains with torch, which nothing else here needs
        from quantrim.post_training.refine.adaround import adaptive_rounding

        rounding = remember(adaptive_rounding)
    rounded: dict[tuple[str, int], WeightCodes] = {}  # by weight: layers that share one go by the first

    def correct(step: Step) -> WeightCodes:
        assert step.node.weight is not None
        key = step.node.weight.name, step.node.weight.axis
        rounded[key] = rounded.get(key) or rounding(step)
        codes = replace(rounded[key], bias=step.codes.bias)
        return correct_bias(step.with_codes(codes)) if "bias" in refinements else codes

    return walk(model, graph, plan, activations, weights, feeds, correct)


def noise(
    model: ir.Model,
    plan: Plan,
    activations: Mapping[str, ActivationScale],
    weights: Mapping[str, WeightCodes],
    feeds: Feeds,
    expected: Sequence[Mapping[str, np.ndarray]],
) -> float:
    """Mean over outputs and samples of the relative squared error of the quantized model, at most 1 each."""
    compared = tuple(expected[0])  # outputs, or what a selection reads
    quantized = run_batches(ending_at(write_qdq(model, plan, activations, weights), compared), feeds)
    errors = [
        np.minimum(np.square(distances(want[name], got[name], batch_of(feed)).relative_error), 1.0)
        for feed, got, want in zip(feeds, quantized, expected, strict=True)
        for name in compared
    ]
    return float(np.mean(np.concatenate(errors)))
