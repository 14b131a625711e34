"""Training and judging detectors: assignment of objects to candidates, losses, metrics of a data set."""

from quantrim.vision.detection.assignment import Assigned, simota, ssd_match
from quantrim.vision.detection.distillation import box_distillation
from quantrim.vision.detection.losses import (
    DETECTION_LOSSES,
    detection_loss,
    gfl_loss,
    ssd_loss,
    yolov3_loss,
    yolox_loss,
)

__all__ = [
    "DETECTION_LOSSES",
    "Assigned",
    "box_distillation",
    "detection_loss",
    "gfl_loss",
    "simota",
    "ssd_loss",
    "ssd_match",
    "yolov3_loss",
    "yolox_loss",
]
