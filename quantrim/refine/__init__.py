"""Corrections after rounding: cross-layer equalisation, bias correction, adaptive rounding."""

from quantrim.refine.equalize import equalize
from quantrim.refine.refine import REFINEMENTS, Refinement, noise, refine_weights

__all__ = ["REFINEMENTS", "Refinement", "equalize", "noise", "refine_weights"]
