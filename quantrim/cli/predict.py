"""``quantrim predict``: predictions of images by a configuration's weights, or by a file on an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from quantrim.cli.evaluate import predictor_of, views_from
from quantrim.cli.options import (
    AllThreadsOption,
    AugmentedOption,
    ConfigOption,
    CropSizeOption,
    DeviceOption,
    EngineOption,
    FlipOption,
    FlipVerticalOption,
    ModelOption,
    ScalesOption,
    SetOption,
    SlideOption,
    StrideOption,
    TrustOption,
    WeightsOption,
    parse_floats,
    read_config,
    refuse,
)
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.errors import ConfigError

ImagesOption = Annotated[Path, typer.Option("--images", "--image-path", help="Image, folder, or list file.")]
PredictionsOption = Annotated[Path, typer.Option("--save-dir", help="Where images of predictions go.")]
ColorOption = Annotated[
    str | None,
    typer.Option("--custom-color", metavar="R,G,B,...", help="Colours of the classes, 0 to 255."),
]


def predict(
    config: ConfigOption,
    images: ImagesOption,
    weights: WeightsOption = None,
    model: ModelOption = None,
    engine: EngineOption = "openvino",
    save_dir: PredictionsOption = Path("output/result"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images of equal size in a batch.")] = 1,
    scales: ScalesOption = None,
    flip: FlipOption = None,
    flip_vertical: FlipVerticalOption = None,
    crop_size: CropSizeOption = None,
    stride: StrideOption = None,
    aug_pred: AugmentedOption = False,
    is_slide: SlideOption = False,
    custom_color: ColorOption = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Boxes below are not told.")] = 0.25,
    device: DeviceOption = "auto",
    threads: AllThreadsOption = None,
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Predict images; segmentation writes added_prediction/ and pseudo_color_prediction/.

    The data set of the configuration need not be on this disk.
    """
    from quantrim.engines import open_session
    from quantrim.engines.machine import describe_machine
    from quantrim.recipes.boxes import boxes_run, only_output
    from quantrim.recipes.judging import detection_test
    from quantrim.recipes.loading import load
    from quantrim.recipes.predict import Prediction, palette_of, predict_files, write_boxes
    from quantrim.vision.config import export_transforms
    from quantrim.vision.palette import PALETTE

    if (weights is None) == (model is None):
        raise ConfigError("give either --weights or --model.")
    palette = PALETTE if custom_color is None else palette_of(parse_floats(custom_color, "--custom-color"))
    loaded = load(read_config(config, sets, trust_code), weights, device)
    views = views_from(loaded.config, scales, flip, flip_vertical, crop_size, stride, is_slide)
    _, transforms = export_transforms(loaded.config)
    facts = loaded.facts
    if facts.task == "detection":
        refuse(
            "is not for detectors, which see the image once.",
            scales=scales, flip=flip, flip_vertical=flip_vertical, crop_size=crop_size, stride=stride,
            aug_pred=aug_pred, is_slide=is_slide,
        )  # fmt: skip
        run, decoder = boxes_run(
            loaded, None if model is None else open_session(model, engine, threads=threads)
        )
        told = replace(detection_test(loaded.config).thresholds, score=score)
        how = Prediction("detection", transforms, facts.names, facts.shape[2], palette, decoder, told)
    else:
        predict_one = views.of(predictor_of(loaded, model, engine, threads, device))
        how = Prediction(facts.task, transforms, facts.names, facts.shape[2], palette)
        run = only_output(predict_one)
    results, _ = predict_files(run, images, how, save_dir, batch_size=batch_size)
    console = console_for(json_target)
    for result in results:
        console.print(line_of(result), markup=False)
    if facts.task != "classification":
        console.print(f"images are in {save_dir}")
    if facts.task == "detection":
        console.print(f"boxes are in {write_boxes(results, save_dir)}")
    record = {"command": "predict", "config": str(config), "model": str(model or weights), "results": results}
    emit_json(record | {"machine": describe_machine().to_json()}, json_target, save_dir / "predict.json")


def line_of(result: dict[str, Any]) -> str:
    """``eye.png: background 98.2%, optic disc 1.8%``."""
    if "boxes" in result:
        told = [f"{one['class']} {one['score']:.0%}" for one in result["boxes"]] or ["nothing found"]
    else:
        shares = result.get("area") or {one["class"]: one["probability"] for one in result["classes"]}
        told = [f"{name} {share:.1%}" for name, share in shares.items()]
    return f"{result['image']}: " + ", ".join(told)
