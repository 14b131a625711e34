"""Everything that was decided about a model's numbers, before it becomes a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from quantrim.graph import Graph
from quantrim.placement import Plan
from quantrim.ranges import (
    ActivationScale,
    Range,
)
from quantrim.ranges.codes import WeightCodes


@dataclass(frozen=True, slots=True)
class Quantized:
    """A model with everything that was decided about it, before it becomes a file.

    Attributes:
        model: normalised float model; refinement may have changed its weights.
        graph: its view.
        plan: where quantizers stand.
        ranges: range of every quantized tensor.
        activations: scale of every quantized tensor.
        weights: codes of every quantized constant, by node.
    """

    model: ir.Model
    graph: Graph
    plan: Plan
    ranges: Mapping[str, Range]
    activations: Mapping[str, ActivationScale]
    weights: Mapping[str, WeightCodes]
