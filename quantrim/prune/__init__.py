"""Structured pruning that is exact, explained, and aimed at what the engine pays."""

from quantrim.prune.criteria import CRITERIA, Criterion, Examples, score
from quantrim.prune.evaluate import (
    Probe,
    cross_entropy,
    divergence,
    probe_without_labels,
    recalibrate_batch_norm,
)
from quantrim.prune.groups import ChannelGraph, ChannelGroup, Frozen
from quantrim.prune.plan import PruningPlan, load_pruned, load_trained, read_plan, save_pruned
from quantrim.prune.pruning import GroupReport, PruningResult, Survey, channel_groups, prune, survey
from quantrim.prune.sensitivity import Job, Sensitivity, estimate, load_sensitivity, measure
from quantrim.prune.solver import Limits

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
    "estimate",
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
