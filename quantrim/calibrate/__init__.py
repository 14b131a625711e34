"""Post-training calibration: run the float model over data, sketch its tensors, choose ranges."""

from quantrim.calibrate.collect import activation_scales, collect, tensor_ranges
from quantrim.calibrate.samples import IMAGENET, Preprocess, calibration_feeds, image_files

__all__ = [
    "IMAGENET",
    "Preprocess",
    "activation_scales",
    "calibration_feeds",
    "collect",
    "image_files",
    "tensor_ranges",
]
