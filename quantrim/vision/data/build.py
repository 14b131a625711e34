"""From the data set of a configuration to images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantrim.errors import DataError
from quantrim.vision import schema
from quantrim.vision.data.box_files import coco_boxes, voc_boxes
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
from quantrim.vision.data.scenes import SHAPES, ItemPainter, Painter, Scenes, ShapePainter, photographs_in
from quantrim.vision.data.shards import TarImages, tar_images


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a data set without opening it.

    Attributes:
        task: what the truth is.
        num_classes: number of classes; None where the folders tell.
        names: names of the classes, as far as they are known.
        shape: height, width and channels of an image, or a usual size of one.
    """

    task: Task
    num_classes: int | None
    names: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (512, 512, 3)


def facts_of(spec: schema.DataSpec) -> Facts:
    """Task, classes and size of images of a data set that need not be on this disk."""
    match spec:
        case schema.SyntheticOpticDisc():
            return Facts("segmentation", 2, CLASSES, (spec.size, spec.size, 3))
        case schema.OpticDiscSeg():
            return Facts("segmentation", 2, CLASSES)
        case schema.Cityscapes():
            return Facts("segmentation", len(CITYSCAPES_CLASSES), CITYSCAPES_CLASSES, (1024, 2048, 3))
        case schema.PascalVOC():
            return Facts("segmentation", len(VOC_CLASSES), VOC_CLASSES)
        case schema.Dataset():
            return Facts("segmentation", spec.num_classes)
        case schema.SyntheticScenes():
            names = SHAPES if spec.items is None else FASHION_MNIST
            return Facts("detection", len(names), names, (spec.size, spec.size, 3))
        case schema.VOCDataSet():
            names = VOC_CLASSES[1:] if spec.label_list is None else ()
            return Facts("detection", len(names) or spec.num_classes, names)
        case schema.COCODataSet():
            return Facts("detection", spec.num_classes)
        case schema.FashionMNIST():
            return Facts("classification", 10, FASHION_MNIST, (28, 28, 1))
        case schema.Cifar10():
            return Facts("classification", 10, CIFAR10, (32, 32, 3))
    return Facts("classification", spec.num_classes)


def open_data(spec: schema.DataSpec, seed: int = 0) -> VisionData:
    """The data set that a configuration describes.

    Args:
        spec: one of :data:`quantrim.vision.schema.DATASETS`.
        seed: of random transforms.

    Raises:
        DataError: files are missing or damaged.
    """
    facts, transforms = facts_of(spec), tuple(one.transform for one in spec.transforms)
    names, count = facts.names, facts.num_classes or 0
    source: Source
    if isinstance(spec, schema.ImageFolder):
        source, names = class_folders(spec.part("{}"))
    elif isinstance(spec, schema.VOCDataSet):
        source, names = voc_boxes(spec.dataset_root, spec.mode, spec.anno_path, spec.label_list)
    elif isinstance(spec, schema.COCODataSet):
        source, names = coco_boxes(spec.dataset_root, spec.anno_path, spec.image_dir)
    else:
        source = _source(spec)
    boxes = spec.model_dump(include={"max_objects", "batch_sides"})
    count = count or len(names)
    return VisionData(source, facts.task, count, transforms, seed, spec.ignore_index, names, **boxes)


def _source(spec: schema.DataSpec) -> Source:
    root, mode = spec.dataset_root, spec.mode
    split: Literal["train", "val"] = "train" if mode == "train" else "val"
    match spec:
        case schema.SyntheticOpticDisc():
            return Kept(_generated(spec))
        case schema.OpticDiscSeg():
            return _optic_disc(spec)
        case schema.Cityscapes():
            return cityscapes(root, mode)
        case schema.PascalVOC():
            return pascal_voc(root, mode)
        case schema.Dataset():
            return listed_masks(root, spec.part("{}_list.txt"), spec.separator)
        case schema.ImageList():
            return listed_labels(root, spec.part("{}_list.txt"), spec.separator)
        case schema.SyntheticScenes():
            return Kept(_scenes(spec))
        case schema.TarShards():
            return _shards(spec)
        case schema.FashionMNIST():
            return fashion_mnist(root, split)
        case schema.Cifar10():
            return cifar10(root, split)
    raise TypeError(f"{type(spec).__name__} is no data set")


def _shards(spec: schema.TarShards) -> TarImages:
    pattern = spec.shards.replace("{mode}", spec.mode)
    found = sorted(spec.dataset_root.glob(pattern))
    if not found:
        raise DataError(f"{spec.dataset_root}: no tar file is named {pattern}.")
    return tar_images(found)


def _scenes(spec: schema.SyntheticScenes) -> Scenes:
    train = spec.mode == "train"
    part = ("train", "val", "test").index(spec.mode)
    painter: Painter = ShapePainter()
    if spec.items is not None:
        painter = ItemPainter(fashion_mnist(spec.items, "train" if train else "val"))
    grounds = () if spec.photographs is None else photographs_in(spec.photographs)
    count = spec.count or (2000 if train else 200)
    return Scenes(count, spec.size, spec.seed * 3 + part, spec.difficulty, painter, grounds)


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
