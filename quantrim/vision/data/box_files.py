"""Boxes from files: PASCAL VOC's XML, COCO's JSON; and generated scenes written as both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from quantrim.errors import DataError
from quantrim.files import atomic_path, write_json, write_text
from quantrim.images import read_image
from quantrim.vision.data.folders import VOC_CLASSES
from quantrim.vision.data.objects import Objects
from quantrim.vision.data.scenes import Scenes


@dataclass(frozen=True)
class BoxFiles:
    """Images in files, and their objects in memory.

    Attributes:
        rows: file of the image, and what is in it.
    """

    rows: tuple[tuple[Path, Objects], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Objects]:
        """Image and objects."""
        path, objects = self.rows[index]
        return read_image(path), objects


def voc_boxes(
    root: Path, mode: str, anno_path: str | None = None, label_list: str | None = None
) -> tuple[BoxFiles, tuple[str, ...]]:
    """PASCAL VOC's detection data.

    Coordinates are taken as they stand in the XML, as PaddleDetection takes them: first and last pixel.

    Args:
        root: the folder of ``JPEGImages``, ``Annotations`` and ``ImageSets``, or of the lists.
        mode: names ``ImageSets/Main/{mode}.txt`` where there is no ``anno_path``.
        anno_path: PaddleDetection's list, ``image annotation`` a line, relative to ``root``.
        label_list: file with a class a line, relative to ``root``; VOC's twenty by default.

    Returns:
        Images with objects, and the names of the classes.

    Raises:
        DataError: a file is missing or no XML of VOC's, or a class is not in the list.
    """
    names = VOC_CLASSES[1:] if label_list is None else tuple(_lines(root / label_list))
    numbers = {name.replace(" ", ""): label for label, name in enumerate(names)}
    rows = []
    for image, annotation in _voc_pairs(root, mode, anno_path):
        if not image.is_file():
            raise DataError(f"{annotation}: its image {image} does not exist.")
        rows.append((image, _voc_objects(annotation, numbers)))
    return BoxFiles(tuple(rows)), names


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such list file.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{path}: the list is empty.")
    return found


def _voc_pairs(root: Path, mode: str, anno_path: str | None) -> Iterator[tuple[Path, Path]]:
    if anno_path is None:
        for name in _lines(root / "ImageSets" / "Main" / f"{mode}.txt"):
            name = name.split()[0]
            yield root / "JPEGImages" / f"{name}.jpg", root / "Annotations" / f"{name}.xml"
        return
    for line in _lines(root / anno_path):
        parts = line.split()
        if len(parts) != 2:
            raise DataError(f"{root / anno_path}: {line[:80]!r} is no pair of image and annotation.")
        yield root / parts[0], root / parts[1]


def _voc_objects(path: Path, numbers: dict[str, int]) -> Objects:
    try:
        tree = ElementTree.parse(path).getroot()
        found = [_voc_object(entry, numbers) for entry in tree.iter("object")]
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: no annotation of PASCAL VOC's ({error}).") from error
    boxes, labels, difficult = zip(*found, strict=True) if found else ((), (), ())
    return Objects.of(boxes, labels, difficult)


def _voc_object(entry: ElementTree.Element, numbers: dict[str, int]) -> tuple[list[float], int, bool]:
    name = (entry.findtext("name") or "").replace(" ", "")
    if name not in numbers:
        raise ValueError(f"class {name!r} is not in the list of {len(numbers)} classes")
    box = [float(entry.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")]
    if not box[0] < box[2] or not box[1] < box[3]:
        raise ValueError(f"the box of a {name} is {box}")
    return box, numbers[name], (entry.findtext("difficult") or "0").strip() == "1"


def coco_boxes(root: Path, anno_path: str, image_dir: str = "") -> tuple[BoxFiles, tuple[str, ...]]:
    """COCO's detection data; crowds count as difficult, classes are the categories in order of their ids.

    Args:
        root: folder of the data.
        anno_path: the JSON file, relative to ``root``.
        image_dir: folder of the images, relative to ``root``.

    Raises:
        DataError: a file is missing or no JSON of COCO's.
    """
    path = root / anno_path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda one: int(one["id"]))
        images = {int(one["id"]): root / image_dir / str(one["file_name"]) for one in content["images"]}
        found = _by_image(content["annotations"], {int(c["id"]): n for n, c in enumerate(categories)})
        names = tuple(str(one["name"]) for one in categories)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no annotations of COCO's ({type(error).__name__}: {error}).") from error
    missing = next((file for file in images.values() if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{path}: listed image {missing} does not exist.")
    none = Objects.of([], [])
    return BoxFiles(tuple((file, found.get(number, none)) for number, file in images.items())), names


def _by_image(annotations: Sequence[Any], numbers: dict[int, int]) -> dict[int, Objects]:
    rows: dict[int, list[tuple[list[float], int, bool]]] = {}
    for one in annotations:
        x, y, width, height = (float(value) for value in one["bbox"])
        if width > 0 and height > 0:
            label, crowd = numbers[int(one["category_id"])], bool(one.get("iscrowd", 0))
            rows.setdefault(int(one["image_id"]), []).append(([x, y, x + width, y + height], label, crowd))
    return {number: Objects.of(*zip(*own, strict=True)) for number, own in rows.items()}


def write_scenes(root: str | Path, scenes: Scenes, mode: str) -> None:
    """Write generated scenes in PASCAL VOC's layout, and as COCO's JSON beside it.

    ``JPEGImages``, ``Annotations``, ``ImageSets/Main/{mode}.txt``, ``label_list.txt``, ``{mode}.json``.

    Args:
        root: folder to fill.
        scenes: what to write.
        mode: name of this part.
    """
    root, names = Path(root), scenes.painter.classes
    listed: list[str] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(scenes)):
        pixels, objects = scenes[index]
        name = f"{mode}_{index:05}"
        with atomic_path(root / "JPEGImages" / f"{name}.jpg") as temporary:
            Image.fromarray(pixels).save(temporary, "JPEG", quality=95)
        write_text(root / "Annotations" / f"{name}.xml", _voc_xml(name, pixels, objects, names))
        listed.append(name)
        height, width = pixels.shape[:2]
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": height, "width": width})
        annotations += _coco_entries(objects, index + 1, len(annotations))
    write_text(root / "ImageSets" / "Main" / f"{mode}.txt", "\n".join(listed) + "\n")
    write_text(root / "label_list.txt", "\n".join(names) + "\n")
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / f"{mode}.json", content)


def _voc_xml(name: str, pixels: np.ndarray, objects: Objects, names: Sequence[str]) -> str:
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = f"{name}.jpg"
    size = ElementTree.SubElement(tree, "size")
    for tag, value in zip(("height", "width", "depth"), pixels.shape, strict=True):
        ElementTree.SubElement(size, tag).text = str(value)
    for box, label, difficult in zip(objects.boxes, objects.labels, objects.difficult, strict=True):
        entry = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(entry, "name").text = names[label]
        ElementTree.SubElement(entry, "difficult").text = str(int(difficult))
        bounds = ElementTree.SubElement(entry, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(bounds, tag).text = str(int(value))
    ElementTree.indent(tree)
    return ElementTree.tostring(tree, encoding="unicode") + "\n"


def _coco_entries(objects: Objects, image: int, before: int) -> list[dict[str, Any]]:
    entries = []
    for number, (box, label, crowd) in enumerate(
        zip(objects.boxes, objects.labels, objects.difficult, strict=True), before + 1
    ):
        x, y, width, height = (float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1]))
        entries.append(
            {"id": number, "image_id": image, "category_id": int(label) + 1, "bbox": [x, y, width, height],
             "area": width * height, "iscrowd": int(crowd)}
        )  # fmt: skip
    return entries
