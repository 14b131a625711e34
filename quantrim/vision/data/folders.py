"""Data sets by their folders: Cityscapes, PASCAL VOC, and classes as folders (ImageNet)."""

from __future__ import annotations

from pathlib import Path

from quantrim.errors import DataError
from quantrim.graph.feeds import IMAGE_SUFFIXES
from quantrim.vision.data.datasets import LabelFiles, MaskFiles, require_files

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv",
)  # fmt: skip
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


def cityscapes(root: Path, mode: str) -> MaskFiles:
    """Cityscapes by its folders ``leftImg8bit/MODE`` and ``gtFine/MODE`` with labelTrainIds.

    Raises:
        DataError: the folders hold no pictures, or a picture has no label.
    """
    suffix = "_leftImg8bit.png"
    images = sorted((root / "leftImg8bit" / mode).glob(f"*/*{suffix}"))
    if not images:
        raise DataError(f"{root}: no Cityscapes pictures in leftImg8bit/{mode}.")
    pairs = []
    for image in images:
        name = image.name.removesuffix(suffix) + "_gtFine_labelTrainIds.png"
        pairs.append((image, root / "gtFine" / mode / image.parent.name / name))
    return _masks(pairs, root)


def pascal_voc(root: Path, mode: str) -> MaskFiles:
    """PASCAL VOC (Everingham et al., 2010) by its own layout.

    ``JPEGImages/``, ``SegmentationClass/`` and ``ImageSets/Segmentation/MODE.txt`` with one name a line;
    ``trainaug`` takes its masks from ``SegmentationClassAug/`` (Hariharan et al., 2011).

    Args:
        root: the folder of these three, or a folder above with ``VOC2012`` or ``VOCdevkit/VOC2012``.
        mode: "train", "val", "trainval" or "trainaug".

    Raises:
        DataError: the list or a picture is missing.
    """
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        listed = folder / "ImageSets" / "Segmentation" / f"{mode}.txt"
        if listed.is_file():
            break
    else:
        raise DataError(
            f"{root}: no ImageSets/Segmentation/{mode}.txt here. Unpack VOCtrainval_11-May-2012.tar into it."
        )
    masks = "SegmentationClassAug" if mode == "trainaug" else "SegmentationClass"
    names = [name for line in listed.read_text(encoding="utf-8").splitlines() if (name := line.strip())]
    pairs = [(folder / "JPEGImages" / f"{name}.jpg", folder / masks / f"{name}.png") for name in names]
    return _masks(pairs, listed)


def _masks(pairs: list[tuple[Path, Path]], source: Path) -> MaskFiles:
    require_files(source, [path for pair in pairs for path in pair])
    return MaskFiles(tuple(pairs))


def class_folders(root: Path) -> tuple[LabelFiles, tuple[str, ...]]:
    """Pictures in one folder a class, as ImageNet's training set: ``root/CLASS/picture.jpeg``.

    Returns:
        The pictures, and the names of the classes, sorted; a label is a place in this order.

    Raises:
        DataError: there is no folder, or no picture in them.
    """
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    rows = [
        (path, number)
        for number, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not rows:
        raise DataError(f"{root}: no pictures in folders, one a class.")
    return LabelFiles(tuple(rows)), tuple(folder.name for folder in folders)
