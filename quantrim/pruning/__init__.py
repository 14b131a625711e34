"""Structured pruning that is exact, explained, and aimed at what the engine pays."""

from quantrim.pruning.cost.solver import Limits
from quantrim.pruning.groups.groups import ChannelGraph, ChannelGroup, Frozen
from quantrim.pruning.plan import PruningPlan, load_pruned, load_trained, read_plan, save_pruned
from quantrim.pruning.pruning import GroupReport, PruningResult, Survey, channel_groups, prune, survey
from quantrim.pruning.sensitivity.criteria import CRITERIA, Criterion, Examples, score
from quantrim.pruning.sensitivity.evaluate import (
    Probe,
    cross_entropy,
    divergence,
    probe_without_labels,
    recalibrate_batch_norm,
)
from quantrim.pruning.sensitivity.sensitivity import Job, Sensitivity, estimate_cost, load_sensitivity, measure

__all__ = [
    "CRITERIA",
    "ChannelGraph",
    "ChannelGroup",
    "Criterion",
    "Examples",
    "Frozen",
    "GroupReport",
    "Job",
    "Limits",
    "Probe",
    "PruningPlan",
    "PruningResult",
    "Sensitivity",
    "Survey",
    "channel_groups",
    "cross_entropy",
    "divergence",
    "estimate_cost",
    "load_pruned",
    "load_sensitivity",
    "load_trained",
    "measure",
    "probe_without_labels",
    "prune",
    "read_plan",
    "recalibrate_batch_norm",
    "save_pruned",
    "score",
    "survey",
]
