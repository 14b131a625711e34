"""The whole story on embedded data: train, export, quantize, ask the engines, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantrim.engines import open_session
from quantrim.engines.inspect import inspect
from quantrim.files import write_json
from quantrim.graph.ports import Feed
from quantrim.post_training import PtqResult, ptq
from quantrim.recipes.comparison import compare, examples_of_set
from quantrim.recipes.loading import load
from quantrim.recipes.runs import best_key, export, train_config
from quantrim.report import write_report
from quantrim.scratch import claiming
from quantrim.vision.config import load_config
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.evaluate import engine_predictor, evaluate, torch_predictor
from quantrim.vision.shipped import shipped_file
from quantrim.vision.train import TrainSettings

#: The demo's configuration, shipped inside the package.
CONFIG = shipped_file("configs", "quick_start/demo.yml")
#: Pictures in the report.
_SHOWN = 4

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made.

    Attributes:
        fp32: FP32 file.
        int8: INT8 file.
        report: HTML page; ``result.json`` with its numbers stands beside it.
        accuracy: mIoU by what was measured: torch, and each engine in FP32 and INT8.
        quantized: result of :func:`quantrim.post_training.ptq`.
    """

    fp32: str
    int8: str
    report: str
    accuracy: dict[str, float]
    quantized: PtqResult


@claiming
def demo(
    save_dir: str | Path, *, iterations: int | None = None, images: int | None = None, say: Say = print
) -> DemoResult:
    """Train BiSeNetV2 on generated fundus pictures and take it to a verified INT8 file.

    Args:
        save_dir: gets weights, both ONNX files, results and pictures.
        iterations: training iterations; the configuration's by default.
        images: validation pictures to judge on; all by default.
        say: called with a line for people at every stage.
    """
    folder = Path(save_dir)
    config = load_config(CONFIG)
    settings = TrainSettings(
        iterations=iterations or config.iterations(),
        batch_size=config.batch_size,
        save_interval=max(20, (iterations or config.iterations()) // 4),
        keep_checkpoint_max=1,
        best_key=best_key(config),
        device="cpu",
    )
    say(f"1. training BiSeNetV2 on generated fundus pictures, {settings.iterations} iterations")
    trained = train_config(config, settings, folder / "train")
    loaded = load(config, trained.best_weights)
    say(f"   best mIoU {trained.best_metric:.4f} after {trained.seconds:.0f} s")
    fp32, int8 = folder / "bisenetv2.onnx", folder / "bisenetv2.int8.onnx"
    difference = export(loaded, fp32)
    say(f"2. exported to {fp32}; largest difference from torch {difference:.1e}")
    calibration = _feeds(load_config(CONFIG, ["val_dataset.mode=train", "val_dataset.count=100"]), 100)
    quantized = ptq(fp32, calibration, int8, task="segmentation", source="as the data set says")
    int8 = Path(quantized.output)
    say(f"3. quantized to {int8} in {quantized.seconds:.1f} s")
    for engine in quantized.engines:
        say(f"   {engine.headline}")
    accuracy = _accuracy(loaded.data, loaded.model, fp32, int8, images)
    for name, value in accuracy.items():
        say(f"   mIoU {value:.4f}  {name}")
    checked = inspect(int8, against=fp32, data=calibration[:4], samples=4)
    predictors = {name: engine_predictor(open_session(path)) for name, path in (("FP32", fp32), ("INT8", int8))}
    result = quantized.to_json() | {
        "accuracy": [
            {"name": engine, "fp32": accuracy[f"{engine} FP32"], "int8": accuracy[f"{engine} INT8"]}
            for engine in ("openvino", "onnxruntime")
        ],
        "layers": checked.to_json()["layers"],
        "training": list(trained.history),
        "pictures": compare(predictors, examples_of_set(loaded.data, _SHOWN), "segmentation"),
    }
    write_json(folder / "result.json", result)
    write_report(folder / "report.html", "BiSeNetV2 on generated fundus pictures", result)
    return DemoResult(str(fp32), str(int8), str(folder / "report.html"), accuracy, quantized)


def _feeds(config: Any, count: int) -> list[Feed]:
    from quantrim.vision.config import build_data

    data = build_data(config, "val_dataset")
    return [{"image": data[index][0].numpy()} for index in range(min(count, len(data)))]


def _accuracy(data: VisionData, model: Any, fp32: Path, int8: Path, limit: int | None) -> dict[str, float]:
    found = {"torch FP32": evaluate(torch_predictor(model), data, limit=limit)["mIoU"]}
    for engine in ("openvino", "onnxruntime"):
        for name, path in (("FP32", fp32), ("INT8", int8)):
            predict = engine_predictor(open_session(path, engine))
            found[f"{engine} {name}"] = evaluate(predict, data, limit=limit)["mIoU"]
    return {name: float(value) for name, value in found.items()}  # type: ignore[arg-type]
