"""Trained detectors through quantization: average precision, fidelity of boxes, milliseconds, megabytes.

    python benchmarks/detection.py -c configs/detection/yolox_nano_scenes.yml --weights best_model/model.pth

NNCF stands beside quantrim where it is installed, with its defaults and the same calibration images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.detection import box_fidelity
from quantrim.engines import installed_engines, open_session
from quantrim.engines.machine import describe_machine
from quantrim.files import size_mb
from quantrim.post_training import ptq
from quantrim.recipes.calibration import calibration_pairs
from quantrim.recipes.judging import TaskJudge, task_judge
from quantrim.recipes.loading import load
from quantrim.recipes.runs import export
from quantrim.vision.config import load_config
from quantrim.vision.detection.evaluate import detections_of

ENGINES = ("openvino", "onnxruntime")


def nncf_file(fp32: Path, images: np.ndarray, output: Path) -> bool:
    """Quantize with NNCF; whether it is installed."""
    try:
        import nncf
        import onnx
    except ImportError:
        return False
    data = nncf.Dataset(list(images), lambda image: {"image": image[None]})
    onnx.save(nncf.quantize(onnx.load(fp32), data, subset_size=len(images)), output)
    return True


def files(loaded: Any, images: np.ndarray, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files by name, and what the race of each said."""
    shape = (1, *images.shape[1:])
    made, races = {"FP32": folder / "fp32.onnx"}, {}
    export(loaded, made["FP32"], shape=shape)
    for name, options in {
        "INT8 portable": {"float_heads": True},
        "INT8 portable, INT8 heads": {"float_heads": False},
        "INT8 openvino": {"float_heads": True, "target": "openvino"},
    }.items():
        made[name] = folder / f"{len(made)}.onnx"
        result = ptq(made["FP32"], images, made[name], **options)
        races[name] = ", ".join(
            f"{one.verdict.engine} {one.times.fp32.median:.2f} -> {one.times.int8.median:.2f} ms"
            for one in result.engines
        )
    if nncf_file(made["FP32"], images, folder / "nncf.onnx"):
        made["NNCF"] = folder / "nncf.onnx"
    return made, races


def table(judge: TaskJudge, made: dict[str, Path], races: dict[str, str]) -> None:
    """A row a file and engine."""
    print("| file | engine | mAP (VOC 11-point) | AP50 | AP | boxes kept | AP to FP32 | MB | batch 1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for engine in (one for one in ENGINES if one in installed_engines()):
        reference = None
        for name, path in made.items():
            session = open_session(path, engine)
            metrics = judge.of_session(session)
            found, _ = detections_of(judge.detector(session), judge.data)
            reference = found if reference is None else reference
            same = box_fidelity(reference, found, judge.data.num_classes)
            cells = [f"{100 * float(metrics[key]):.1f}" for key in ("mAP_11point", "AP50", "AP")]  # type: ignore[arg-type]
            print(
                f"| {name} | {engine} | {' | '.join(cells)} | {same.kept:.1%} of {same.reference_boxes} | "
                f"{100 * same.ap:.1f} | {size_mb(path):.2f} | {races.get(name, '')} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    config = load_config(options.config)
    loaded = load(config, options.weights)
    images = np.stack([image.numpy() for image, _ in calibration_pairs(config, options.samples)])
    judge = task_judge(config, data=loaded.data)
    print(describe_machine().to_json())
    torch_metrics = judge.of_module(loaded.model)
    print(
        f"torch: mAP {torch_metrics['mAP']:.4f}, AP50 {torch_metrics['AP50']:.4f}, AP {torch_metrics['AP']:.4f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        table(judge, *files(loaded, images, Path(folder)))


if __name__ == "__main__":
    main()
