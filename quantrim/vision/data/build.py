"""From the ``train_dataset`` and ``val_dataset`` of a configuration to pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantrim.errors import ConfigError, DataError, did_you_mean
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
from quantrim.vision.data.transforms import transform_named

if TYPE_CHECKING:
    from quantrim.vision.config import Config


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a configuration asks for.

    Attributes:
        root: folder of the data.
        mode: "train", "val", "test" or a list that the data set knows besides.
        spec: all keys.
    """

    root: Path
    mode: str
    spec: Mapping[str, Any]

    @property
    def split(self) -> Literal["train", "val"]:
        """The split of sets that have two, of which "test" is the second; ConfigError for another mode."""
        if self.mode not in ("train", "val", "test"):
            raise ConfigError(f"mode {self.mode!r}{did_you_mean(self.mode, ('train', 'val', 'test'))}")
        return "train" if self.mode == "train" else "val"

    @property
    def list_file(self) -> Path:
        """``{mode}_path`` of the configuration, ``{mode}_list.txt`` by default."""
        return self.root / str(self.spec.get(f"{self.mode}_path", f"{self.mode}_list.txt"))

    def number(self, key: str, default: int | None = None) -> int:
        """An integer of the configuration; ConfigError where it is missing and has no default."""
        value = self.spec.get(key, default)
        if value is None:
            raise ConfigError(f"{key} is missing.")
        return int(value)


@dataclass(frozen=True, slots=True)
class _Opened:
    source: Source
    task: Task
    num_classes: int
    names: tuple[str, ...] = ()


def _generated(wanted: _Wanted) -> _Opened:
    train = wanted.split == "train"
    images = OpticDiscImages(
        wanted.number("count", 267 if train else 76),
        wanted.number("size", 256),
        wanted.number("seed", 0) * 3 + (0 if train else 1),
        float(wanted.spec.get("difficulty", 0.6)),
    )
    return _Opened(Kept(images), "segmentation", 2, CLASSES)


def _optic_disc(wanted: _Wanted) -> _Opened:
    root = wanted.root
    if not root.is_dir():
        raise DataError(
            f"{root}: no OpticDiscSeg here. Unpack PaddleSeg's optic_disc_seg.zip into it or write a generated "
            f"set: python -c \"from quantrim.vision.data.optic_disc import *; write_optic_disc('{root}')\""
        )
    source = listed_masks(root, root / f"{wanted.mode}_list.txt", wanted.spec.get("separator"))
    return _Opened(source, "segmentation", 2, CLASSES)


def _cityscapes(wanted: _Wanted) -> _Opened:
    classes = len(CITYSCAPES_CLASSES)
    return _Opened(cityscapes(wanted.root, wanted.mode), "segmentation", classes, CITYSCAPES_CLASSES)


def _voc(wanted: _Wanted) -> _Opened:
    return _Opened(pascal_voc(wanted.root, wanted.mode), "segmentation", len(VOC_CLASSES), VOC_CLASSES)


def _listed_masks(wanted: _Wanted) -> _Opened:
    classes = wanted.number("num_classes")
    source = listed_masks(wanted.root, wanted.list_file, wanted.spec.get("separator"))
    return _Opened(source, "segmentation", classes)


def _listed_labels(wanted: _Wanted) -> _Opened:
    classes = wanted.number("num_classes", 1000)
    source = listed_labels(wanted.root, wanted.list_file, wanted.spec.get("separator"))
    return _Opened(source, "classification", classes)


def _class_folders(wanted: _Wanted) -> _Opened:
    source, names = class_folders(wanted.root / str(wanted.spec.get(f"{wanted.mode}_path", wanted.mode)))
    return _Opened(source, "classification", len(names), names)


def _fashion_mnist(wanted: _Wanted) -> _Opened:
    return _Opened(fashion_mnist(wanted.root, wanted.split), "classification", 10, FASHION_MNIST)


def _cifar10(wanted: _Wanted) -> _Opened:
    return _Opened(cifar10(wanted.root, wanted.split), "classification", 10, CIFAR10)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type of data set.

    Attributes:
        open: from a configuration to pictures.
        keys: what it knows besides :data:`_KEYS`.
    """

    open: Callable[[_Wanted], _Opened]
    keys: frozenset[str] = frozenset()


#: Keys of every data set. PaddleSeg's ``edge`` asks for outlines beside the masks, which no model here uses.
_KEYS = frozenset({"type", "dataset_root", "mode", "transforms", "num_classes", "ignore_index", "edge"})
_PATHS = frozenset({"train_path", "val_path", "test_path"})
_GENERATED = frozenset({"count", "size", "seed", "difficulty"})
#: ``img_channels`` is PaddleSeg's; here a picture has the channels of its file.
_LISTED = _PATHS | {"separator", "img_channels"}

#: What ``type:`` may say.
DATASETS: Mapping[str, _Kind] = {
    "SyntheticOpticDisc": _Kind(_generated, _GENERATED),
    "OpticDiscSeg": _Kind(_optic_disc, frozenset({"separator"})),
    "Cityscapes": _Kind(_cityscapes),
    "PascalVOC": _Kind(_voc),
    "Dataset": _Kind(_listed_masks, _LISTED),
    "ImageList": _Kind(_listed_labels, _LISTED),
    "ImageFolder": _Kind(_class_folders, _PATHS),
    "FashionMNIST": _Kind(_fashion_mnist),
    "Cifar10": _Kind(_cifar10),
}


def check_keys(config: Config, key: str) -> None:
    """Refuse keys that a data set of a known type does not know; other faults are left to :func:`build_data`.

    Args:
        config: the configuration.
        key: "train_dataset" or "val_dataset"; may be missing.

    Raises:
        ConfigError: naming the file, the key and the nearest legal one.
    """
    spec = config.values.get(key)
    if not isinstance(spec, Mapping) or (kind := str(spec.get("type"))) not in DATASETS:
        return
    legal = _KEYS | DATASETS[kind].keys | {f"{spec.get('mode')}_path" for _ in DATASETS[kind].keys & _PATHS}
    for name in spec:
        if name in legal:
            continue
        owner = next((other for other, found in DATASETS.items() if name in found.keys), None)
        hint = f"; it is one of {owner}, and '_inherited_: False' leaves out what a base says."
        raise config.fail(key, f"unknown key {name!r} of {kind}{hint if owner else did_you_mean(name, legal)}")


def build_data(config: Config, key: str = "train_dataset", *, seed: int = 0) -> VisionData:
    """Data set of ``train_dataset`` or ``val_dataset``.

    Raises:
        ConfigError: unknown type, transform or argument, or the key is missing.
        DataError: files are missing.
    """
    spec = config.values.get(key)
    if not isinstance(spec, Mapping):
        raise config.fail(key, "is missing; it is a mapping with a type.")
    kind = str(spec.get("type"))
    if kind not in DATASETS:
        raise config.fail(key, f"unknown data set {kind!r}{did_you_mean(kind, DATASETS)}")
    check_keys(config, key)
    mode = str(spec.get("mode", "train" if key == "train_dataset" else "val"))
    try:
        transforms = tuple(transform_named(t) for t in spec.get("transforms", ()))
        opened = DATASETS[kind].open(_Wanted(Path(str(spec.get("dataset_root", "."))), mode, spec))
    except ConfigError as error:
        raise config.fail(key, str(error)) from error
    for where, declared in (("model", config.values["model"]), (key, spec)):
        given = declared.get("num_classes")
        if given is not None and int(given) != opened.num_classes:
            message = f"is {given}, but {key} has {opened.num_classes} classes."
            raise config.fail(f"{where}.num_classes", message)
    ignore = int(spec.get("ignore_index", 255))
    return VisionData(opened.source, opened.task, opened.num_classes, transforms, seed, ignore, opened.names)
