"""``quantrim predict``: pictures in, overlays or class names out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.cli.train import ConfigOption, SetOption
from quantrim.errors import ConfigError


def predict(
    config: ConfigOption,
    images: Annotated[Path, typer.Option(help="Picture, folder, or list file.")],
    weights: Annotated[Path | None, typer.Option(help="torch weights.")] = None,
    model: Annotated[Path | None, typer.Option(help=".onnx file, run on --engine.")] = None,
    engine: Annotated[str, typer.Option()] = "openvino",
    save_dir: Annotated[Path, typer.Option()] = Path("output/result"),
    sets: SetOption = None,
    json_target: JsonOption = None,
) -> None:
    """Predict pictures; segmentation writes added_prediction/ and pseudo_color_prediction/."""
    from quantrim.engines import open_session
    from quantrim.vision.config import export_transforms, load_config
    from quantrim.vision.evaluate import engine_predictor, torch_predictor
    from quantrim.vision.runs import load, predict_files

    if (weights is None) == (model is None):
        raise ConfigError("give either --weights or --model.")
    loaded = load(load_config(config, sets or ()), weights)
    if model is None:
        predictor = torch_predictor(loaded.model)
    else:
        predictor = engine_predictor(open_session(model, engine))
    _, transforms = export_transforms(loaded.config)
    results = predict_files(predictor, images, transforms, loaded.data.task, save_dir, loaded.data.class_names)
    console = console_for(json_target)
    for result in results:
        console.print(result)
    if loaded.data.task == "segmentation":
        console.print(f"pictures are in {save_dir}")
    emit_json({"command": "predict", "results": results}, json_target)
