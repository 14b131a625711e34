"""Segmentation and classification models.

Every segmentation model maps images, float32 (N, 3, H, W), to a list of logits (N, num_classes, H, W): the
main head's first, those of auxiliary heads after it in training mode only. Every classifier returns logits
(N, num_classes).
"""

from quantrim.checkpoints import LoadReport, load_weights, read_state
from quantrim.vision.models.adapter import Segmenter
from quantrim.vision.models.bisenetv2 import BiSeNetV2
from quantrim.vision.models.classification import (
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
    resnet18,
    resnet50,
    resnet101,
    vgg16,
    vgg19,
)
from quantrim.vision.models.cost import ModelCost, profile
from quantrim.vision.models.deeplab import DeepLabV3, DeepLabV3P
from quantrim.vision.models.fast_scnn import FastSCNN
from quantrim.vision.models.fcn import FCN
from quantrim.vision.models.gcnet import GCNet
from quantrim.vision.models.hardnet import HarDNet
from quantrim.vision.models.hrnet import HRNet, hrnet_w18, hrnet_w48
from quantrim.vision.models.mobilenet_v1 import MobileNetV1
from quantrim.vision.models.pspnet import PSPNet
from quantrim.vision.models.resnet_vd import ResNetVd, resnet50_vd, resnet101_vd
from quantrim.vision.models.resolve import MODELS, model_from_spec, resolve_model
from quantrim.vision.models.unet import UNet

__all__ = [
    "FCN",
    "MODELS",
    "BiSeNetV2",
    "DeepLabV3",
    "DeepLabV3P",
    "FastSCNN",
    "GCNet",
    "HRNet",
    "HarDNet",
    "LoadReport",
    "MobileNetV1",
    "ModelCost",
    "PSPNet",
    "ResNetVd",
    "Segmenter",
    "UNet",
    "hrnet_w18",
    "hrnet_w48",
    "load_weights",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "model_from_spec",
    "profile",
    "read_state",
    "resnet18",
    "resnet50",
    "resnet50_vd",
    "resnet101",
    "resnet101_vd",
    "resolve_model",
    "vgg16",
    "vgg19",
]
