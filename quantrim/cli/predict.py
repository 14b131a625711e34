"""``quantrim predict``: pictures in, overlays or class names out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantrim.cli.evaluate import (
    CropSizeOption,
    EngineOption,
    FlipOption,
    FlipVerticalOption,
    ModelOption,
    ScalesOption,
    StrideOption,
    WeightsOption,
    predictor_of,
    views_from,
)
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.train import ConfigOption, SetOption
from quantrim.errors import ConfigError


def predict(
    config: ConfigOption,
    images: Annotated[Path, typer.Option("--images", "--image-path", help="Picture, folder, or list file.")],
    weights: WeightsOption = None,
    model: ModelOption = None,
    engine: EngineOption = "openvino",
    save_dir: Annotated[Path, typer.Option(help="Where the pictures of segmentation go.")] = Path(
        "output/result"
    ),
    scales: ScalesOption = None,
    flip: FlipOption = None,
    flip_vertical: FlipVerticalOption = None,
    crop_size: CropSizeOption = None,
    stride: StrideOption = None,
    sets: SetOption = None,
    json_target: JsonOption = None,
) -> None:
    """Predict pictures; segmentation writes added_prediction/ and pseudo_color_prediction/."""
    from quantrim.recipes.runs import load, predict_files
    from quantrim.vision.config import export_transforms, load_config

    if (weights is None) == (model is None):
        raise ConfigError("give either --weights or --model.")
    loaded = load(load_config(config, sets or ()), weights)
    views = views_from(loaded.config, scales, flip, flip_vertical, crop_size, stride)
    _, transforms = export_transforms(loaded.config)
    results = predict_files(
        views.of(predictor_of(loaded, model, engine)),
        images,
        transforms,
        loaded.data.task,
        save_dir,
        loaded.data.class_names,
        grey=loaded.data.source[0][0].shape[2] == 1,
    )
    console = console_for(json_target)
    for result in results:
        console.print(_line(result), markup=False)
    if loaded.data.task == "segmentation":
        console.print(f"pictures are in {save_dir}")
    emit_json({"command": "predict", "results": results}, json_target)


def _line(result: dict[str, Any]) -> str:
    """``eye.png: background 98.2%, optic disc 1.8%``."""
    shares = result.get("area") or {one["class"]: one["probability"] for one in result["classes"]}
    return f"{result['image']}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
