"""What the model loses when a group of channels goes."""

from quantrim.pruning.sensitivity.criteria import CRITERIA, DATA_DRIVEN, Criterion, Examples, Scores, score
from quantrim.pruning.sensitivity.curves import GRID, USUAL_RATIOS, Curve, Point, Sensitivity, load_sensitivity
from quantrim.pruning.sensitivity.probe import (
    Losses,
    Probe,
    cross_entropy,
    direct_losses,
    divergence,
    error_rate,
    iou_loss,
    mean_cross_entropy,
    probe_without_labels,
)
from quantrim.pruning.sensitivity.sensitivity import (
    Estimate,
    Job,
    Progress,
    estimate_cost,
    measure,
    require_workers,
)
from quantrim.pruning.sensitivity.statistics import recalibrate_batch_norm

__all__ = [
    "CRITERIA",
    "DATA_DRIVEN",
    "GRID",
    "USUAL_RATIOS",
    "Criterion",
    "Curve",
    "Estimate",
    "Examples",
    "Job",
    "Losses",
    "Point",
    "Probe",
    "Progress",
    "Scores",
    "Sensitivity",
    "cross_entropy",
    "direct_losses",
    "divergence",
    "error_rate",
    "estimate_cost",
    "iou_loss",
    "load_sensitivity",
    "mean_cross_entropy",
    "measure",
    "probe_without_labels",
    "recalibrate_batch_norm",
    "require_workers",
    "score",
]
