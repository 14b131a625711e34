"""Where quantizers stand: one algorithm over a graph and a target."""

from quantrim.placement.place import EVERYTHING, Selection, fused_tail, place
from quantrim.placement.plan import Plan, WeightQuantization, plan_from_json

__all__ = [
    "EVERYTHING",
    "Plan",
    "Selection",
    "WeightQuantization",
    "fused_tail",
    "place",
    "plan_from_json",
]
