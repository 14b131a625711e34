"""Boxes without torch: decoders, selection, geometry and the metrics of detectors, in numpy.

What is said once here serves training (validation), engines (the verdict on boxes), and deployment
(``deploy.yaml`` names the decoder that stands behind a file).
"""

from quantrim.detection.average_precision import VocMetric, VocStyle, coco_metrics, voc_metric
from quantrim.detection.boxes import Boxes, Detections, GroundTruth, clipped, iou_matrix, to_corners
from quantrim.detection.decoders import (
    BoxesDecoder,
    Decoder,
    DflDecoder,
    RowsDecoder,
    SsdDecoder,
    YoloV3Decoder,
    YoloXDecoder,
    decoder_from,
    decoder_to_json,
)
from quantrim.detection.fidelity import BoxFidelity, box_fidelity
from quantrim.detection.letterbox import Frame, letterbox
from quantrim.detection.selection import Thresholds, detect, nms, select, thresholds_from

__all__ = [
    "BoxFidelity",
    "Boxes",
    "BoxesDecoder",
    "Decoder",
    "Detections",
    "DflDecoder",
    "Frame",
    "GroundTruth",
    "RowsDecoder",
    "SsdDecoder",
    "Thresholds",
    "VocMetric",
    "VocStyle",
    "YoloV3Decoder",
    "YoloXDecoder",
    "box_fidelity",
    "clipped",
    "coco_metrics",
    "decoder_from",
    "decoder_to_json",
    "detect",
    "iou_matrix",
    "letterbox",
    "nms",
    "select",
    "thresholds_from",
    "to_corners",
    "voc_metric",
]
