"""The YOLOX inside the package ddddocr, as users have it, through quantizers: boxes before and after.

    pip install --no-deps ddddocr    # for this benchmark alone; or --model common_det.onnx
    python benchmarks/foreign_detector.py [--calibration 100] [--test 150] [--only NNCF]

Scenes are turned glyphs on photographs, so that boxes are exact. Told are the AP on the labels, the AP against
the float model's own confident boxes, and how many of those are kept; NNCF gets the same calibration scenes.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import string
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from photos import photos
from PIL import Image, ImageDraw, ImageFont
from ptq_latency import quantize_nncf_openvino

from quantrim.detection import (
    Detections,
    GroundTruth,
    Thresholds,
    YoloXDecoder,
    box_fidelity,
    coco_metrics,
    detect,
)
from quantrim.engines import EngineName, open_session
from quantrim.engines.machine import describe_machine
from quantrim.post_training import ptq

SIDE = 416
DECODER = YoloXDecoder(num_classes=1, activated=True)
#: Label: (options of ptq, engines).
OURS: Mapping[str, tuple[Mapping[str, Any], tuple[EngineName, ...]]] = {
    "quantrim, portable": ({}, ("openvino", "onnxruntime")),
    "quantrim, openvino": ({"target": "openvino"}, ("openvino",)),
    "quantrim, onnxruntime": ({"target": "onnxruntime"}, ("onnxruntime",)),
}


def scenes(count: int, seed: int) -> tuple[np.ndarray, list[GroundTruth]]:
    """Scenes float32 (count, 3, 416, 416), BGR 0..255, and the boxes of their glyphs."""
    generator = np.random.default_rng(seed)
    made = [_scene(generator, index) for index in range(count)]
    return np.stack([image for image, _ in made]), [truth for _, truth in made]


def _scene(generator: np.random.Generator, index: int) -> tuple[np.ndarray, GroundTruth]:
    picture = photos()[index % len(photos())]
    side = int(min(picture.size) * generator.uniform(0.5, 1.0))
    left, top = (int(generator.integers(0, extent - side + 1)) for extent in picture.size)
    canvas = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    boxes: list[tuple[int, ...]] = []
    for _ in range(int(generator.integers(2, 7))):
        glyph = _glyph(generator)
        x, y = (int(generator.integers(0, SIDE - extent)) for extent in glyph.size)
        box = (x, y, x + glyph.width, y + glyph.height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            continue
        boxes.append(box)
        colour = tuple(int(v) for v in generator.integers(0, 256, 3))
        canvas.paste(Image.new("RGB", glyph.size, colour), (x, y), glyph)
    pixels = np.asarray(canvas, np.float32)[:, :, ::-1].transpose(2, 0, 1)
    return pixels, GroundTruth.of(np.array(boxes, np.float32).reshape(-1, 4), np.zeros(len(boxes), np.int64))


def _glyph(generator: np.random.Generator) -> Image.Image:
    """Mask of a turned letter or digit, as small as it may be."""
    import matplotlib

    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
    font = ImageFont.truetype(str(fonts[int(generator.integers(len(fonts)))]), int(generator.integers(36, 110)))
    letter = str(generator.choice(list(string.ascii_letters + string.digits)))
    mask = Image.new("L", (220, 220))
    ImageDraw.Draw(mask).text((110, 110), letter, fill=255, font=font, anchor="mm")
    turned = mask.rotate(float(generator.uniform(-35, 35)), Image.Resampling.BILINEAR)
    return turned.crop(turned.point(lambda value: 255 * (value > 96)).getbbox())


def found(path: Path, engine: EngineName, images: np.ndarray) -> list[Detections]:
    """Detections of every scene."""
    session, thresholds = open_session(path, engine), Thresholds()
    answers = (session.run({session.inputs[0].name: image[None]}) for image in images)
    return [detect(DECODER, list(one.values()), (SIDE, SIDE), thresholds)[0] for one in answers]


def model_of(package: str, name: str) -> Path:
    """A file of an installed package, found without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"{package} is not installed: pip install --no-deps {package}, for this benchmark alone."
        )
    return Path(spec.origin).parent / name


def files(
    source: Path, images: np.ndarray, folder: Path, only: str
) -> dict[str, tuple[Callable[[], Path], tuple[EngineName, ...]]]:
    """What makes each quantizer's file, and the engines that it is for."""

    def ours(name: str, options: Mapping[str, Any]) -> Path:
        output = folder / f"{name.split()[-1]}.onnx"
        result = ptq(source, images, output, engines=(), input_shape=(1, 3, SIDE, SIDE), **options)
        return Path(result.output)

    made = {name: (lambda name=name, options=options: ours(name, options), engines)
            for name, (options, engines) in OURS.items()}  # fmt: skip
    made["NNCF"] = (lambda: quantize_nncf_openvino(source, folder, images), ("openvino",))
    return {name: one for name, one in made.items() if only in name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="the YOLOX of ddddocr, where that is not installed")
    parser.add_argument("--calibration", type=int, default=100)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--only", default="", help="quantizers whose name contains this")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    source = arguments.model or model_of("ddddocr", "common_det.onnx")
    calibration, _ = scenes(arguments.calibration, seed=1)
    images, truths = scenes(arguments.test, seed=2)
    reference = found(source, "openvino", images)
    print(f"{describe_machine().line()}; {arguments.calibration} scenes calibrate, {len(images)} others with "
          f"{sum(map(len, (one.boxes for one in truths)))} boxes judge\n")  # fmt: skip
    print("| file | engine | AP | AP50 | AP75 | AP to FP32 | AP50 to FP32 | boxes kept | boxes > 0.3 |")
    print("|---|---|---|---|---|---|---|---|---|")

    def row(name: str, engine: EngineName, got: list[Detections]) -> None:
        labels = coco_metrics(got, truths, 1)
        same = box_fidelity(reference, got, 1)
        numbers = (*(labels[key] for key in ("AP", "AP50", "AP75")), same.ap, same.ap50)
        cells = " | ".join(f"{100 * value:.1f}" for value in numbers)
        print(f"| {name} | {engine} | {cells} | {same.kept:.1%} | {same.boxes} |", flush=True)

    row("FP32", "openvino", reference)
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, engines) in files(source, calibration, Path(folder), arguments.only).items():
            path = make()
            for engine in engines:
                row(name, engine, found(path, engine, images))


if __name__ == "__main__":
    main()
