"""Sensitivity as a drawing: one row a group, darker where the loss rises more."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantrim.files import atomic_path
from quantrim.pruning.sensitivity.curves import GRID, Sensitivity
from quantrim.report.charts import heatmap

#: Rises below this share of the largest one look like none.
_LEAST = 1e-4


def plot_sensitivity(sensitivity: Sensitivity, path: str | Path) -> None:
    """Write an SVG: expected rise of the loss by group and share removed; dots where it was measured.

    Args:
        sensitivity: curves of all groups.
        path: .svg file.
    """
    curves = sensitivity.groups
    rises = {name: curve(np.array(GRID)) for name, curve in curves.items()}
    top = max([float(row.max()) for row in rises.values()] + [1e-6])
    shades = {
        name: [float(np.log(max(rise, top * _LEAST) / (top * _LEAST)) / -np.log(_LEAST)) for rise in row]
        for name, row in rises.items()
    }
    dots = {name: [point.ratio for point in curve.points] for name, curve in curves.items()}
    title = f"Rise of the loss over {sensitivity.baseline:.4g}, up to {top:.3g}; dots are measured"
    with atomic_path(path) as temporary:
        temporary.write_text(heatmap(shades, GRID, dots, title, "share of channels removed"), encoding="utf-8")
