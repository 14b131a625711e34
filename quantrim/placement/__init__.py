"""Where quantizers stand: one algorithm over a graph and a target."""

from quantrim.placement.place import EVERYTHING, Selection, fused_tail, place
from quantrim.placement.plan import Plan, WeightQuantizer, plan_from_json

__all__ = [
    "EVERYTHING",
    "Plan",
    "Selection",
    "WeightQuantizer",
    "fused_tail",
    "place",
    "plan_from_json",
]
