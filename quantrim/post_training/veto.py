"""Measured ranges may veto what placement ties: plan, ranges, and a second plan where they lie too far apart.

A target whose concat has one scale for all that meets there ties tensors before anything is known of their
ranges. A branch that another one dwarfs keeps a few codes then, and every layer that reads it computes from
those. Where such a tensor would lose more than :data:`BITS` of its eight bits, the joins that tie it stay
float, and its own scale is kept. Placement stays a function of graph, target and selection; this module only
adds to the selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

from quantrim.graph import Graph
from quantrim.placement import Plan, Selection, place
from quantrim.post_training.calibrate import tensor_ranges
from quantrim.post_training.config import PtqConfig
from quantrim.ranges import Range, Sketch
from quantrim.targets import Target

#: Bits that a tensor may lose to the scale that it shares: a factor of 8 between the ranges.
BITS = 3.0


def settled_plan(
    graph: Graph, plan: Plan, selection: Selection, sketches: Mapping[str, Sketch], config: PtqConfig
) -> Plan:
    """The plan, or one with fewer shared scales where the ranges of their tensors lie too far apart.

    Args:
        graph: view of the model.
        plan: what ``selection`` gave.
        selection: what stays float anyway.
        sketches: statistics of the plan's tensors.
        config: target and estimator.
    """
    ranges = _own_ranges(plan, sketches, config)
    while joins := strained_joins(graph, config.rules, plan, ranges):
        selection = replace(selection, float_nodes=selection.float_nodes | joins)
        plan = place(graph, config.rules, selection)
    return plan


def _own_ranges(plan: Plan, sketches: Mapping[str, Sketch], config: PtqConfig) -> dict[str, Range]:
    alone = replace(plan, groups={tensor: tensor for tensor in plan.groups})
    return tensor_ranges(
        alone, sketches, config.algo, hist_percent=config.hist_percent, overrides=config.overrides
    )


def strained_joins(graph: Graph, target: Target, plan: Plan, ranges: Mapping[str, Range]) -> frozenset[str]:
    """INT8 joins whose common scale costs a tensor too many bits, where a layer computes with that tensor.

    A tensor that only the join reads loses nothing more: the join's result has that scale in any case.
    """
    groups: dict[str, list[str]] = {}
    for tensor, group in plan.groups.items():
        groups.setdefault(group, []).append(tensor)
    found: set[str] = set()
    for tensors in groups.values():
        widths = {tensor: ranges[tensor].high - ranges[tensor].low for tensor in tensors}
        union = reduce(Range.union, (ranges[tensor] for tensor in tensors))
        least = (union.high - union.low) / 2**BITS
        narrow = [tensor for tensor in tensors if 0 < widths[tensor] < least]
        if any(_is_computed_with(graph, target, plan, tensor) for tensor in narrow):
            found |= _dividing(graph, target, plan, widths)
    return frozenset(found)


def _is_computed_with(graph: Graph, target: Target, plan: Plan, tensor: str) -> bool:
    """Whether anything but a join or a move reads a quantized tensor."""
    ties = target.carry | target.shared_scale
    readers = graph.consumers.get(tensor, ())
    return tensor in plan.outputs or any(
        node.name in plan.int8_nodes and node.op not in ties for node in readers
    )


def _dividing(graph: Graph, target: Target, plan: Plan, widths: Mapping[str, float]) -> set[str]:
    """The joins of a group where narrow and wide tensors meet; all of them where no single one does."""
    joins = [
        node
        for node in graph.nodes
        if node.name in plan.int8_nodes and node.op in target.shared_scale and set(node.inputs) & widths.keys()
    ]
    spans = {node.name: [widths[t] for t in node.inputs if widths.get(t, 0) > 0] for node in joins}
    torn = {name for name, found in spans.items() if found and max(found) > min(found) * 2**BITS}
    return torn or {node.name for node in joins}
