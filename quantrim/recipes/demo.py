"""The whole story on embedded data: train, export, quantize, ask the engines, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from quantrim.engines import open_session
from quantrim.engines.inspect import inspect
from quantrim.errors import ConfigError, did_you_mean
from quantrim.files import write_json
from quantrim.graph.ports import Feed
from quantrim.post_training import PtqResult, ptq
from quantrim.recipes.comparison import compare, examples_of_set
from quantrim.recipes.judging import KEYS, TaskJudge, task_judge
from quantrim.recipes.loading import Loaded, load
from quantrim.recipes.runs import best_key, export, train_config
from quantrim.report import write_report
from quantrim.scratch import claiming
from quantrim.vision.config import Config, build_data, load_config
from quantrim.vision.evaluate import engine_predictor
from quantrim.vision.shipped import shipped_file
from quantrim.vision.train import TrainResult, TrainSettings


@dataclass(frozen=True, slots=True)
class Story:
    """What a demo tells of.

    Attributes:
        config: configuration, shipped inside the package.
        model: name for people.
        stem: of the files.
        data: what the images are, for people.
        metric: name of the metric that decides, for people.
    """

    config: str
    model: str
    stem: str
    data: str
    metric: str


#: Demos by task.
STORIES = {
    "segmentation": Story(
        "quick_start/demo.yml", "BiSeNetV2", "bisenetv2", "generated fundus pictures", "mIoU"
    ),
    "detection": Story("quick_start/demo_detection.yml", "YOLOX-nano", "yolox_nano", "generated scenes", "mAP"),
}
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
        accuracy: the deciding metric by what was measured: torch, and each engine in FP32 and INT8.
        quantized: result of :func:`quantrim.post_training.ptq`.
    """

    fp32: str
    int8: str
    report: str
    accuracy: dict[str, float]
    quantized: PtqResult


@claiming
def demo(
    save_dir: str | Path,
    *,
    task: str = "segmentation",
    iterations: int | None = None,
    images: int | None = None,
    say: Say = print,
) -> DemoResult:
    """Train a small model on generated pictures and take it to a verified INT8 file.

    Args:
        save_dir: gets weights, both ONNX files, results and pictures.
        task: "segmentation" (BiSeNetV2) or "detection" (YOLOX-nano).
        iterations: training iterations; the configuration's by default.
        images: validation pictures to judge on; all by default.
        say: called with a line for people at every stage.

    Raises:
        ConfigError: there is no demo of that task.
    """
    if task not in STORIES:
        raise ConfigError(f"there is no demo of task {task!r}{did_you_mean(task, STORIES)}", field="task")
    folder, story = Path(save_dir), STORIES[task]
    shipped = shipped_file("configs", story.config)
    config = load_config(shipped)
    loaded, trained = _trained(config, folder, story, iterations, say)
    fp32, int8 = folder / f"{story.stem}.onnx", folder / f"{story.stem}.int8.onnx"
    difference = export(loaded, fp32)
    say(f"2. exported to {fp32}; largest difference from torch {difference:.1e}")
    calibration = _feeds(load_config(shipped, ["val_dataset.mode=train", "val_dataset.count=100"]), 100)
    judge = task_judge(config, data=loaded.data, limit=images)
    boxes: dict[str, Any] = {"decoder": judge.decoder, "float_heads": True} if judge.decoder is not None else {}
    quantized = ptq(fp32, calibration, int8, task=task, source="as the data set says", **boxes)
    int8 = Path(quantized.output)
    say(f"3. quantized to {int8} in {quantized.seconds:.1f} s")
    for engine in quantized.engines:
        say(f"   {engine.headline}")
    accuracy = _accuracy(judge, KEYS[task], loaded.model, fp32, int8)
    for name, value in accuracy.items():
        say(f"   {story.metric} {value:.4f}  {name}")
    result = quantized.to_json() | {
        "accuracy": [
            {"name": engine, "fp32": accuracy[f"{engine} FP32"], "int8": accuracy[f"{engine} INT8"]}
            for engine in ("openvino", "onnxruntime")
        ],
        "metric": story.metric,
        "layers": inspect(int8, against=fp32, data=calibration[:4], samples=4).to_json()["layers"],
        "training": list(trained.history),
        "pictures": _pictures(judge, loaded, fp32, int8),
    }
    write_json(folder / "result.json", result)
    write_report(folder / "report.html", f"{story.model} on {story.data}", result)
    return DemoResult(str(fp32), str(int8), str(folder / "report.html"), accuracy, quantized)


def _trained(
    config: Config, folder: Path, story: Story, iterations: int | None, say: Say
) -> tuple[Loaded, TrainResult]:
    count = iterations or config.iterations()
    settings = TrainSettings(
        iterations=count,
        batch_size=config.batch_size,
        save_interval=max(20, count // 4),
        keep_checkpoint_max=1,
        best_key=best_key(config),
        device="cpu",
    )
    say(f"1. training {story.model} on {story.data}, {settings.iterations} iterations")
    trained = train_config(config, settings, folder / "train")
    say(f"   best {story.metric} {trained.best_metric:.4f} after {trained.seconds:.0f} s")
    return load(config, trained.best_weights), trained


def _pictures(judge: TaskJudge, loaded: Loaded, fp32: Path, int8: Path) -> list[dict[str, Any]]:
    sessions = {name: open_session(path) for name, path in (("FP32", fp32), ("INT8", int8))}
    predictors: dict[str, Any] = {
        name: engine_predictor(session) if judge.decoder is None else judge.detector(session)
        for name, session in sessions.items()
    }
    examples = examples_of_set(loaded.data, _SHOWN)
    return compare(predictors, examples, loaded.data.task, loaded.data.class_names)


def _feeds(config: Config, count: int) -> list[Feed]:
    data = build_data(config, "val_dataset")
    return [{"image": data[index][0].numpy()} for index in range(min(count, len(data)))]


def _accuracy(judge: TaskJudge, key: str, model: nn.Module, fp32: Path, int8: Path) -> dict[str, float]:
    found = {"torch FP32": judge.of_module(model)[key]}
    for engine in ("openvino", "onnxruntime"):
        for name, path in (("FP32", fp32), ("INT8", int8)):
            found[f"{engine} {name}"] = judge.of_session(open_session(path, engine))[key]
    return {name: float(value) for name, value in found.items()}  # type: ignore[arg-type]
