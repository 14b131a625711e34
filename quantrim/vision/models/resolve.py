"""From the names that a config uses to models: PaddleSeg's ``type:`` words, or a Python import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from quantrim.errors import ConfigError, did_you_mean
from quantrim.vision.models import classification
from quantrim.vision.models.bisenetv2 import BiSeNetV2
from quantrim.vision.models.deeplab import DeepLabV3, DeepLabV3P
from quantrim.vision.models.fast_scnn import FastSCNN
from quantrim.vision.models.fcn import FCN
from quantrim.vision.models.gcnet import GCNet
from quantrim.vision.models.hardnet import HarDNet
from quantrim.vision.models.hrnet import hrnet_w18, hrnet_w48
from quantrim.vision.models.mobilenet_v1 import MobileNetV1
from quantrim.vision.models.pspnet import PSPNet
from quantrim.vision.models.resnet_vd import resnet50_vd, resnet101_vd
from quantrim.vision.models.unet import UNet

#: What a config may name without a dot.
MODELS: dict[str, Callable[..., nn.Module]] = {
    # segmentation
    "BiSeNetV2": BiSeNetV2,
    "DeepLabV3": DeepLabV3,
    "DeepLabV3P": DeepLabV3P,
    "FCN": FCN,
    "FastSCNN": FastSCNN,
    "GCNet": GCNet,
    "HarDNet": HarDNet,
    "PSPNet": PSPNet,
    "UNet": UNet,
    # backbones
    "HRNet_W18": hrnet_w18,
    "HRNet_W48": hrnet_w48,
    "ResNet50_vd": resnet50_vd,
    "ResNet101_vd": resnet101_vd,
    # classification
    "MobileNetV1": MobileNetV1,
    "MobileNetV2": classification.mobilenet_v2,
    "MobileNetV3_small": classification.mobilenet_v3_small,
    "MobileNetV3_large": classification.mobilenet_v3_large,
    "ResNet18": classification.resnet18,
    "ResNet50": classification.resnet50,
    "ResNet101": classification.resnet101,
    "VGG16": classification.vgg16,
    "VGG19": classification.vgg19,
}


def resolve_model(type_name: str) -> Callable[..., nn.Module]:
    """The class or function that a config names.

    Args:
        type_name: a name of :data:`MODELS`, or an import path such as
            ``torchvision.models.segmentation.deeplabv3_resnet50``; the path is imported, so it is trusted.

    Raises:
        ConfigError: the name or the path leads nowhere, or to something that builds no model.
    """
    if type_name in MODELS:
        return MODELS[type_name]
    module_name, _, attribute = type_name.rpartition(".")
    if not module_name:
        raise ConfigError(
            f"model type {type_name!r} is unknown{did_you_mean(type_name, MODELS)} "
            "Any other model goes by its import path, such as timm.create_model."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"model type {type_name!r}: {module_name} can't be imported ({error})") from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(
            f"model type {type_name!r}: {module_name} has no {attribute!r} to call"
            f"{did_you_mean(attribute, public)}"
        )
    if not (inspect.isfunction(found) or (inspect.isclass(found) and issubclass(found, nn.Module))):
        raise ConfigError(f"model type {type_name!r} is neither a torch.nn.Module class nor a Python function")
    return found


def model_from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """Build the model that PaddleSeg's ``model:`` section describes.

    Args:
        spec: ``type`` and the arguments of that type; an argument that is a mapping with a ``type``, such as
            the backbone, is built first.

    Raises:
        ConfigError: no or an unknown type, an unknown or missing argument, or a result that is no module.
    """
    if "type" not in spec:
        raise ConfigError(f"a model needs a type; got {dict(spec)}{did_you_mean('', MODELS)}")
    build = resolve_model(str(spec["type"]))
    arguments = {
        name: model_from_spec(value) if isinstance(value, Mapping) and "type" in value else value
        for name, value in spec.items()
        if name != "type"
    }
    _check_arguments(str(spec["type"]), build, arguments)
    model = build(**arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model type {spec['type']!r} makes {type(model).__name__}, not a torch.nn.Module")
    return model


def _check_arguments(type_name: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(build).parameters
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    for name in arguments:
        if name not in parameters and not open_ended:
            raise ConfigError(f"{type_name} has no argument {name!r}{did_you_mean(name, parameters)}")
    needed = [
        name
        for name, one in parameters.items()
        if one.default is inspect.Parameter.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    missing = [name for name in needed if name not in arguments]
    if missing:
        raise ConfigError(f"{type_name} needs {', '.join(missing)}; add it to the model section of the config")
