"""From the data set of a configuration to images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantrim.errors import DataError
from quantrim.vision import schema
from quantrim.vision.data.cifar import CIFAR10, cifar10
from quantrim.vision.data.datasets import (
    FASHION_MNIST,
    Kept,
    Source,
    Task,
    VisionData,
    fashion_mnist,
    listed_labels,
    listed_masks,
)
from quantrim.vision.data.folders import (
    CITYSCAPES_CLASSES,
    VOC_CLASSES,
    cityscapes,
    class_folders,
    pascal_voc,
)
from quantrim.vision.data.optic_disc import CLASSES, OpticDiscImages


@dataclass(frozen=True, slots=True)
class _Opened:
    source: Source
    task: Task
    num_classes: int
    names: tuple[str, ...] = ()


def open_data(spec: schema.DataSpec, seed: int = 0) -> VisionData:
    """The data set that a configuration describes.

    Args:
        spec: one of :data:`quantrim.vision.schema.DATASETS`.
        seed: of random transforms.

    Raises:
        DataError: files are missing or damaged.
    """
    opened = _segmentation(spec) or _classification(spec)
    transforms = tuple(one.transform for one in spec.transforms)
    return VisionData(
        opened.source, opened.task, opened.num_classes, transforms, seed, spec.ignore_index, opened.names
    )


def _segmentation(spec: schema.DataSpec) -> _Opened | None:
    root, mode = spec.dataset_root, spec.mode
    match spec:
        case schema.SyntheticOpticDisc():
            return _Opened(Kept(_generated(spec)), "segmentation", 2, CLASSES)
        case schema.OpticDiscSeg():
            return _Opened(_optic_disc(spec), "segmentation", 2, CLASSES)
        case schema.Cityscapes():
            classes = len(CITYSCAPES_CLASSES)
            return _Opened(cityscapes(root, mode), "segmentation", classes, CITYSCAPES_CLASSES)
        case schema.PascalVOC():
            return _Opened(pascal_voc(root, mode), "segmentation", len(VOC_CLASSES), VOC_CLASSES)
        case schema.Dataset():
            source = listed_masks(root, spec.part("{}_list.txt"), spec.separator)
            return _Opened(source, "segmentation", spec.num_classes)
    return None


def _classification(spec: schema.DataSpec) -> _Opened:
    root = spec.dataset_root
    split: Literal["train", "val"] = "train" if spec.mode == "train" else "val"
    match spec:
        case schema.ImageList():
            source = listed_labels(root, spec.part("{}_list.txt"), spec.separator)
            return _Opened(source, "classification", spec.num_classes)
        case schema.ImageFolder():
            files, names = class_folders(spec.part("{}"))
            return _Opened(files, "classification", len(names), names)
        case schema.FashionMNIST():
            return _Opened(fashion_mnist(root, split), "classification", 10, FASHION_MNIST)
        case schema.Cifar10():
            return _Opened(cifar10(root, split), "classification", 10, CIFAR10)
    raise TypeError(f"{type(spec).__name__} is no data set")


def _generated(spec: schema.SyntheticOpticDisc) -> OpticDiscImages:
    train = spec.mode == "train"
    count = spec.count or (267 if train else 76)
    return OpticDiscImages(count, spec.size, spec.seed * 3 + (0 if train else 1), spec.difficulty)


def _optic_disc(spec: schema.OpticDiscSeg) -> Source:
    root = spec.dataset_root
    if not root.is_dir():
        raise DataError(
            f"{root}: no OpticDiscSeg here. Unpack PaddleSeg's optic_disc_seg.zip into it or write a generated "
            f"set: python -c \"from quantrim.vision.data.optic_disc import *; write_optic_disc('{root}')\""
        )
    return listed_masks(root, root / f"{spec.mode}_list.txt", spec.separator)
