"""From the names that a config uses to models: PaddleSeg's ``type:`` words, or a Python import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torchvision
from torch import nn

from quantrim.errors import ConfigError, QuantrimError, did_you_mean, first_line
from quantrim.vision.models import classification
from quantrim.vision.models.bisenetv2 import BiSeNetV2
from quantrim.vision.models.deeplab import DeepLabV3, DeepLabV3P
from quantrim.vision.models.detection import (
    PicoDet,
    TorchvisionSSD,
    YOLOv3,
    picodet_s,
    ssdlite,
    yolov3_mobilenet_v1,
    yolox,
    yolox_nano,
    yolox_s,
    yolox_tiny,
)
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
    # detection
    "YOLOv3MobileNetV1": yolov3_mobilenet_v1,
    "YOLOv3": YOLOv3,
    "YOLOX": yolox,
    "YOLOXNano": yolox_nano,
    "YOLOXTiny": yolox_tiny,
    "YOLOXS": yolox_s,
    "PicoDet": PicoDet,
    "PicoDetS": picodet_s,
    "SSDLite": ssdlite,
    "TorchvisionSSD": TorchvisionSSD,
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


#: Packages from which a configuration may name a constructor by its import path, and nothing else.
ALLOWED_PACKAGES = ("quantrim.vision.models", "torchvision.models", "timm", "segmentation_models_pytorch")
#: Functions that build models by name, and those that are listed as builders nowhere.
_FACTORIES = {"timm.create_model", "segmentation_models_pytorch.create_model"}
#: Arguments with which timm reads a file of the caller's choice, a pickle perhaps.
_READING = frozenset({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})
_TRUST = "Only with trust_code may a configuration call what it names."
Build = Callable[..., nn.Module]


def resolve_model(type_name: str, *, trust_code: bool = False) -> Build:
    """The class or function that a config names.

    Args:
        type_name: a name of :data:`MODELS`, or an import path such as
            ``torchvision.models.segmentation.deeplabv3_resnet50``.
        trust_code: import any path and call any class of modules or any function; else only the models of
            :data:`ALLOWED_PACKAGES`, and nothing outside them is imported.

    Raises:
        ConfigError: the name or the path leads nowhere, or to something that builds no model or is not allowed.
    """
    if type_name in MODELS:
        return MODELS[type_name]
    module_name, _, attribute = type_name.rpartition(".")
    if not module_name:
        raise ConfigError(
            f"model type {type_name!r} is unknown{did_you_mean(type_name, MODELS)} "
            "Any other model goes by its import path, such as timm.create_model."
        )
    if not trust_code and not _inside(module_name):
        raise ConfigError(
            f"model type {type_name!r} is not allowed; an import path starts with "
            f"{', '.join(ALLOWED_PACKAGES)}. {_TRUST}"
        )
    found = _attribute(type_name, module_name, attribute)
    if inspect.isclass(found) and issubclass(found, nn.Module):
        if found.forward is nn.Module.forward:
            raise ConfigError(f"model type {type_name!r} computes nothing: the class has no forward")
        known = _inside(found.__module__)
    elif inspect.isfunction(found):
        known = type_name in _FACTORIES or found in MODELS.values() or _registered(found)
    else:
        raise ConfigError(f"model type {type_name!r} is neither a torch.nn.Module class nor a Python function")
    if not (known or trust_code):
        raise ConfigError(f"model type {type_name!r} is no model of {module_name.partition('.')[0]}. {_TRUST}")
    return found


def _inside(module_name: str) -> bool:
    return any(module_name == one or module_name.startswith(f"{one}.") for one in ALLOWED_PACKAGES)


def _attribute(type_name: str, module_name: str, attribute: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"model type {type_name!r}: {module_name} can't be imported ({error})") from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(
            f"model type {type_name!r}: {module_name} has no {attribute!r} to call"
            f"{did_you_mean(attribute, public)}"
        )
    return found


def _registered(function: Callable[..., Any]) -> bool:
    """Whether the library that the function comes from lists it as a builder of models."""
    package, name = function.__module__.partition(".")[0], function.__name__
    if package == "torchvision":
        return (
            name in torchvision.models.list_models() and torchvision.models.get_model_builder(name) is function
        )
    if package == "timm":
        import timm

        return timm.is_model(name) and timm.model_entrypoint(name) is function
    return False


def model_from_spec(spec: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Build the model that PaddleSeg's ``model:`` section describes.

    Args:
        spec: ``type`` and the arguments of that type; an argument that is a mapping with a ``type``, such as
            the backbone, is built first.
        trust_code: as for :func:`resolve_model`.

    Raises:
        ConfigError: no or an unknown type, an unknown, missing or illegal argument, or a result that is no
            module.
    """
    if "type" not in spec:
        raise ConfigError(f"a model needs a type; got {dict(spec)}{did_you_mean('', MODELS)}")
    name = str(spec["type"])
    build = resolve_model(name, trust_code=trust_code)
    given = {key: value for key, value in spec.items() if key != "type"}
    _check_arguments(name, build, given)
    if not trust_code and name not in MODELS:
        _refuse_reading(name, given)
    arguments = {
        key: model_from_spec(value, trust_code=trust_code)
        if isinstance(value, Mapping) and "type" in value
        else value
        for key, value in given.items()
    }
    try:
        model = build(**arguments)
    except (QuantrimError, MemoryError):
        raise
    except Exception as error:  # a constructor of any library, given any value
        raise ConfigError(f"{name} can't be built with these arguments ({first_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model type {name!r} makes {type(model).__name__}, not a torch.nn.Module")
    return model


def _refuse_reading(type_name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what makes another library fetch or unpickle a file that the configuration names."""
    texts = [text for value in arguments.values() for text in (value if isinstance(value, list) else [value])]
    reading = next((name for name in arguments if name in _READING), None)
    address = next((text for text in texts if isinstance(text, str) and (":" in text or "/" in text)), None)
    if reading is not None or address is not None:
        what = f"argument {reading!r}" if reading is not None else repr(address)
        raise ConfigError(
            f"{type_name}: {what} names a file or an address. Load weights by 'weights'. {_TRUST}"
        )


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
