"""Many models for many targets under many budgets, and baselines that keep what was reached."""

from quantrim.fleet.matrix import Cell, FleetResult, run_fleet
from quantrim.fleet.spec import FleetSpec, read_fleet

__all__ = ["Cell", "FleetResult", "FleetSpec", "read_fleet", "run_fleet"]
