"""Everything that was decided about a model's numbers, and the file that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quantrim.engines import Precision
from quantrim.errors import ModelError
from quantrim.files import write_json
from quantrim.graph import Graph
from quantrim.graph.core import core_of
from quantrim.graph.from_onnx import constant
from quantrim.graph.normalize import run_batches
from quantrim.graph.ports import Feed, samples_in
from quantrim.graph.session import save_model
from quantrim.placement import Plan
from quantrim.placement.qdq import write_qdq
from quantrim.placement.quantized import Quantized
from quantrim.post_training.calibrate import collect, scales_of_plan, tensor_ranges
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.refine import Refinement, noise, refine_weights
from quantrim.post_training.refine.bias_pass import correct_biases
from quantrim.post_training.refine.means import MEAN_SAMPLES, InputMeans, taps_of
from quantrim.post_training.refine.walk import Rounding
from quantrim.ranges import (
    ActivationScale,
    Sketch,
    WeightAlgo,
    quantize_weight,
    weight_scales,
    widen_for_bias,
)
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import Float32
from quantrim.rewrites.files import ask_precision
from quantrim.targets import Target

#: Samples of the quantized pass that corrects biases.
BIAS_SAMPLES = 8


def decide(
    model: ir.Model, sketches: Mapping[str, Sketch], *, graph: Graph, plan: Plan, config: PtqConfig
) -> Quantized:
    """Choose ranges, scales and codes, before any refinement.

    Args:
        model: normalised float model.
        sketches: statistics of at least the tensors of the plan.
        graph: view of the model.
        plan: where quantizers stand.
        config: how scales are chosen.
    """
    ranges = tensor_ranges(
        plan, sketches, config.algo, hist_percent=config.hist_percent, overrides=config.overrides
    )
    activations = scales_of_plan(plan, ranges)
    codes = weight_codes(
        model,
        plan,
        activations,
        algo=config.weight_algo,
        per_channel=config.per_channel,
        levels=config.levels,
    )
    return Quantized(model, graph, plan, ranges, activations, codes)


def refine(
    quantized: Quantized,
    feeds: Sequence[Mapping[str, np.ndarray]],
    refinements: Sequence[Refinement],
    means: InputMeans | None = None,
    remember: Callable[[Rounding], Rounding] = lambda rounding: rounding,
) -> Quantized:
    """The same with codes and biases refined ("adaround", "bias"), whether that helps or not.

    Args:
        quantized: what was decided so far.
        feeds: calibration batches.
        refinements: what to do; at least one word.
        means: for "bias" alone: what calibration noted of the first batches; taken from ``feeds`` when None.
        remember: wraps adaptive rounding, so that a restarted run need not round again.
    """
    one = quantized
    if "adaround" in refinements:
        weights = refine_weights(
            one.model, one.graph, one.plan, one.activations, one.weights, feeds, refinements, remember
        )
        return replace(one, weights=weights)
    if means is None:
        means = means_for(one.model, one.graph, one.plan, feeds)
        sources = {taps.source for taps in means.taps.values()}
        collect(one.model, sources, first_samples(feeds, MEAN_SAMPLES), shapes=one.graph.shapes, means=means)
    return replace(one, weights=correct_biases(one, means, first_samples(feeds, BIAS_SAMPLES)))


def means_for(model: ir.Model, graph: Graph, plan: Plan, feeds: Sequence[Feed]) -> InputMeans:
    """Means that bias correction of a plan needs, to be filled from the first batches."""
    few, many = (len(first_samples(feeds, count)) for count in (BIAS_SAMPLES, MEAN_SAMPLES))
    return InputMeans(taps_of(model, graph, plan), few, many)


def is_better(one: Quantized, other: Quantized, feeds: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Whether a model has less relative squared error at the outputs than another of the same function."""
    expected = list(run_batches(core_of(other.model), feeds))
    errors = [noise(q.model, q.plan, q.activations, q.weights, feeds, expected) for q in (one, other)]
    return errors[0] < errors[1]


def first_samples(feeds: Sequence[Feed], count: int) -> list[Feed]:
    """The first batches, as many as hold so many samples; one at least."""
    sizes = np.cumsum([samples_in(feed) for feed in feeds])
    return list(feeds[: int(np.searchsorted(sizes, count)) + 1])


def held_apart(feeds: Sequence[Feed], count: int) -> tuple[Sequence[Feed], Sequence[Feed]]:
    """Batches to fit on, and the last ones to judge on: so many samples, a third at most; all, if there is one.

    What was fitted to a few samples is better on those in any case.
    """
    if len(feeds) < 2:
        return feeds, feeds
    judged = min(len(first_samples(feeds[::-1], count)), max(1, len(feeds) // 3))
    return feeds[:-judged], feeds[-judged:]


def save_quantized(
    quantized: Quantized, target: Target, output: str | Path, precision: Precision = "f32"
) -> None:
    """Write the INT8 file, which says in which precision its float layers run, and its ranges beside it."""
    one = quantized
    int8 = write_qdq(one.model, one.plan, one.activations, one.weights, int32_bias=target.bias == "int32")
    ask_precision(int8, precision)
    save_model(int8, output)
    write_json(ranges_path(output), ranges_json(one))


def weight_codes(
    model: ir.Model,
    plan: Plan,
    activations: Mapping[str, ActivationScale],
    *,
    algo: WeightAlgo = "abs_max",
    per_channel: bool = True,
    levels: int = 127,
) -> dict[str, WeightCodes]:
    """Round every weight of a plan to the nearest code; scales leave room for int32 sums.

    Layers that read the same weight get the same scales, the coarsest that any of them needs, so that the file
    holds its codes once.
    """
    scales: dict[str, Float32] = {}
    for node, quantizer in plan.weights.items():
        weight = constant(model, quantizer.tensor)
        found = weight_scales(weight, quantizer.axis if per_channel else None, algo, levels)
        if not np.isfinite(found).all():
            raise ModelError(f"node {node!r}: weight {quantizer.tensor!r} holds NaN or infinite values.")
        bias = constant(model, quantizer.bias) if quantizer.bias else None
        source = activations[quantizer.source].scale
        scales[node] = widen_for_bias(found, source, bias, weight, quantizer.axis)
    common: dict[tuple[str, int], Float32] = {}
    for node, quantizer in plan.weights.items():
        key = quantizer.tensor, quantizer.axis
        common[key] = np.maximum(common[key], scales[node]) if key in common else scales[node]
    codes = {}
    for node, quantizer in plan.weights.items():
        axis, shared = quantizer.axis if per_channel else None, common[quantizer.tensor, quantizer.axis]
        rounded = quantize_weight(constant(model, quantizer.tensor), shared, axis, levels)
        codes[node] = WeightCodes(rounded, shared, axis)
    return codes


def ranges_path(output: str | Path) -> Path:
    """Where the ranges of an INT8 file are written."""
    return Path(output).with_suffix(".ranges.json")


def ranges_json(quantized: Quantized) -> dict[str, Any]:
    """Ranges, scales and plan as plain JSON."""
    return {
        "plan": quantized.plan.to_json(),
        "tensors": {
            tensor: {
                "low": quantized.ranges[tensor].low,
                "high": quantized.ranges[tensor].high,
                "scale": scale.scale,
                "zero_point": scale.zero_point,
                "dtype": "int8" if scale.signed else "uint8",
            }
            for tensor, scale in quantized.activations.items()
        },
    }
