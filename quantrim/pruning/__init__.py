"""Structured pruning that is exact, explained, and aimed at what the engine pays."""

from quantrim.pruning.choose import Known
from quantrim.pruning.config import PruneConfig
from quantrim.pruning.cost.latency import Engine
from quantrim.pruning.cost.solver import Limits
from quantrim.pruning.for_latency import prune_for_latency
from quantrim.pruning.groups.groups import ChannelGraph, ChannelGroup, Frozen
from quantrim.pruning.plan import PruningPlan, load_pruned, load_trained, read_plan, save_pruned
from quantrim.pruning.pruning import GroupReport, PruningResult, prune, prune_as
from quantrim.pruning.sensitivity.criteria import CRITERIA, Criterion, Examples, score
from quantrim.pruning.sensitivity.curves import Sensitivity, load_sensitivity
from quantrim.pruning.sensitivity.probe import (
    Probe,
    cross_entropy,
    divergence,
    error_rate,
    iou_loss,
    probe_without_labels,
)
from quantrim.pruning.sensitivity.sensitivity import Job, estimate_cost, measure
from quantrim.pruning.sensitivity.statistics import recalibrate_batch_norm
from quantrim.pruning.survey import Survey, channel_groups, survey

__all__ = [
    "CRITERIA",
    "ChannelGraph",
    "ChannelGroup",
    "Criterion",
    "Engine",
    "Examples",
    "Frozen",
    "GroupReport",
    "Job",
    "Known",
    "Limits",
    "Probe",
    "PruneConfig",
    "PruningPlan",
    "PruningResult",
    "Sensitivity",
    "Survey",
    "channel_groups",
    "cross_entropy",
    "divergence",
    "error_rate",
    "estimate_cost",
    "iou_loss",
    "load_pruned",
    "load_sensitivity",
    "load_trained",
    "measure",
    "probe_without_labels",
    "prune",
    "prune_as",
    "prune_for_latency",
    "read_plan",
    "recalibrate_batch_norm",
    "save_pruned",
    "score",
    "survey",
]
