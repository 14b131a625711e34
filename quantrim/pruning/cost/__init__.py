"""What a channel costs, and which channels to give for a budget."""

from quantrim.pruning.cost.cost import full_widths, macs_model, parameter_count
from quantrim.pruning.cost.latency import (
    Engine,
    LatencyModel,
    latency_model,
    measured_ms,
    measured_side_by_side,
)
from quantrim.pruning.cost.solver import Choices, Cost, Limits, Solution, allowed_units, least_units, solve

__all__ = [
    "Choices",
    "Cost",
    "Engine",
    "LatencyModel",
    "Limits",
    "Solution",
    "allowed_units",
    "full_widths",
    "latency_model",
    "least_units",
    "macs_model",
    "measured_ms",
    "measured_side_by_side",
    "parameter_count",
    "solve",
]
