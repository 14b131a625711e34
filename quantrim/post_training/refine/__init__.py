"""Corrections after rounding: cross-layer equalisation, bias correction, adaptive rounding."""

from quantrim.post_training.refine.equalize import equalize
from quantrim.post_training.refine.refine import REFINEMENTS, Refinement, noise, refine_weights

__all__ = ["REFINEMENTS", "Refinement", "equalize", "noise", "refine_weights"]
