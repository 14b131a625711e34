"""Calibration images for a model whose data nobody may see."""
