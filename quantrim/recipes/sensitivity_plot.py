"""Sensitivity as a picture: one row a group, darker where the loss rises more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from quantrim.files import atomic_path
from quantrim.pruning.sensitivity.sensitivity import GRID, Sensitivity


def plot_sensitivity(sensitivity: Sensitivity, path: str | Path) -> None:
    """Write a PNG: expected rise of the loss by group and share removed; dots where it was measured.

    Args:
        sensitivity: curves of all groups.
        path: .png file.
    """
    names = list(sensitivity.groups)
    rises = np.array([sensitivity.groups[name](np.array(GRID)) for name in names])
    figure = Figure(figsize=(8, max(2.5, 0.17 * len(names) + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    top = max(float(rises.max(initial=0.0)), 1e-6)
    norm = LogNorm(top * 1e-4, top)
    image = axes.pcolormesh(
        np.array([0.025, *(ratio + 0.025 for ratio in GRID)]),
        np.arange(len(names) + 1) - 0.5,
        np.maximum(rises, top * 1e-4),
        norm=norm,
        cmap="viridis_r",
    )
    for row, name in enumerate(names):
        points = sensitivity.groups[name].points
        axes.plot([point.ratio for point in points], [row] * len(points), "k.", markersize=3)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("share of channels removed")
    axes.set_title(f"Rise of the loss over {sensitivity.baseline:.4g}; dots are measured", fontsize=9)
    figure.colorbar(image, ax=axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
