"""A small trained classifier and real images to try every verb on, without data or network."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from quantrim.errors import DataError
from quantrim.files import atomic_path, write_text

#: The model, its deploy.yaml, and test images of Fashion-MNIST (MIT licence) with their labels.
SOURCE = Path(__file__).parent / "example"


@dataclass(frozen=True, slots=True)
class ExampleFiles:
    """What :func:`write_example` wrote.

    Attributes:
        model: FP32 .onnx file: a residual network of 78,042 parameters for 28x28 RGB images, 10 classes.
        images: folder of PNG files.
        labels: list file, ``images/000.png 9`` a line.
        count: number of images.
    """

    model: Path
    images: Path
    labels: Path
    count: int


def write_example(folder: str | Path) -> ExampleFiles:
    """Write a model, its ``deploy.yaml``, images and labels into a folder.

    Raises:
        DataError: the folder holds another model.onnx already.
    """
    folder = Path(folder)
    model, images = folder / "model.onnx", folder / "images"
    shipped = SOURCE / "model.onnx"
    if model.exists() and model.read_bytes() != shipped.read_bytes():
        raise DataError(f"{model}: another model is there already. Give another folder.")
    images.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "deploy.yaml"):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(SOURCE / name, temporary)
    with np.load(SOURCE / "images.npz") as stored:
        pixels, labels = stored["images"], stored["labels"]
    names = [f"{index:03d}.png" for index in range(len(pixels))]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).convert("RGB").save(images / name)
    lines = (f"images/{name} {label}\n" for name, label in zip(names, labels, strict=True))
    write_text(folder / "labels.txt", "".join(lines))
    return ExampleFiles(model, images, folder / "labels.txt", len(names))
