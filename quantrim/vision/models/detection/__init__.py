"""Detectors: images in, the maps of their heads out, and a decoder that says what the maps mean.

Every detector is a module whose ``forward`` maps images, float32 (N, 3, H, W), to a tuple of raw maps, the
same in training and in eval mode. It tells, as attributes,

* ``decoder``: a :data:`quantrim.detection.Decoder`, which reads the maps;
* ``head_outputs``: names of the modules that make the maps. They stay float in quantization: one scale over
  boxes and scores destroys the scores, and the maps feed an exponential.
"""

from quantrim.vision.models.detection.base import Detector, is_detector, require_detector
from quantrim.vision.models.detection.body import StridedMaps
from quantrim.vision.models.detection.decoded import Decoded, candidates
from quantrim.vision.models.detection.picodet import PicoDet, picodet_s
from quantrim.vision.models.detection.ssdlite import TorchvisionSSD, ssdlite
from quantrim.vision.models.detection.yolov3 import YOLOv3, yolov3_mobilenet_v1
from quantrim.vision.models.detection.yolox import YOLOX, yolox, yolox_nano, yolox_s, yolox_tiny

__all__ = [
    "YOLOX",
    "Decoded",
    "Detector",
    "PicoDet",
    "StridedMaps",
    "TorchvisionSSD",
    "YOLOv3",
    "candidates",
    "is_detector",
    "picodet_s",
    "require_detector",
    "ssdlite",
    "yolov3_mobilenet_v1",
    "yolox",
    "yolox_nano",
    "yolox_s",
    "yolox_tiny",
]
