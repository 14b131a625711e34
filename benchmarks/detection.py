"""Trained detectors through every way to a small file: average precision, fidelity of boxes, milliseconds, MB.

    python benchmarks/detection.py make -c configs/detection/yolox_nano_scenes.yml --folder output/yolox
    python benchmarks/detection.py judge -c configs/detection/yolox_nano_scenes.yml --folder output/yolox
    python benchmarks/detection.py time --folder output/yolox
    python benchmarks/detection.py table --folder output/yolox output/yolov3

``make`` trains, quantizes after training (NNCF beside it, with its defaults and the same images), trains with
quantizers, prunes with retraining, quantizes that and trains it, too; what is there already is left alone, and
interrupted training goes on. ``judge`` measures every file on both engines, ``time`` races them in turns.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.detection import Detections, box_fidelity
from quantrim.distillation import Distillation
from quantrim.engines import installed_engines, open_session, random_inputs
from quantrim.engines.bench import interleaved
from quantrim.engines.machine import describe_machine
from quantrim.files import read_json, size_mb, write_json
from quantrim.post_training import ptq
from quantrim.pruning import PruneConfig
from quantrim.recipes.calibration import calibration_pairs
from quantrim.recipes.judging import task_judge
from quantrim.recipes.loading import load
from quantrim.recipes.prune import PruneRecipe, prune_config
from quantrim.recipes.qat import QatRecipe, train_quantized
from quantrim.recipes.runs import best_key, export, train_config
from quantrim.vision.config import Config, load_config
from quantrim.vision.detection.evaluate import detections_of, metrics_of_boxes
from quantrim.vision.train import TrainSettings

ENGINES = ("openvino", "onnxruntime")
_RUNS = 60


def settings_of(config: Config, iterations: int, **more: Any) -> TrainSettings:
    """Settings of one training, validated five times."""
    return TrainSettings(
        iterations, config.batch_size, max(1, -(-iterations // 5)), keep_checkpoint_max=1, log_iters=100,
        best_key=best_key(config), device="cpu", **more,
    )  # fmt: skip


def resumed(folder: Path) -> Path | None:
    """The folder of an interrupted training, if there is one."""
    return folder if any(folder.glob("iter_*/state.pth")) else None


class Making:
    """Files of one model in a folder."""

    def __init__(self, config: Config, folder: Path, options: argparse.Namespace) -> None:
        self.config, self.folder, self.options = config, folder, options

    def run(self) -> None:
        """Make what is missing, as far as it was asked for."""
        weights = self.options.weights or self._trained()
        fp32, pruned = self.folder / "fp32.onnx", self.folder / "pruned" / "model.onnx"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._once(fp32, lambda: export(load(self.config, weights), fp32, shape=self._shape()))
        self._quantized(fp32, "")
        if self.options.until == "ptq":
            return
        self._once(self.folder / "qat" / "qat.json", lambda: self._quantized_training("qat", weights))
        if self.options.until == "qat":
            return
        self._once(self.folder / "pruned" / "prune.json", lambda: self._pruned(weights))
        self._quantized(pruned, "pruned_")
        last, small = self.folder / "pruned_qat", self.folder / "pruned" / "model.pth"
        self._once(last / "qat.json", lambda: self._quantized_training("pruned_qat", small, weights))

    def _once(self, path: Path, make: Callable[[], Any]) -> None:
        if not path.is_file():
            make()
            print(path, flush=True)

    def _trained(self) -> Path:
        folder = self.folder / "train"
        if not (folder / "run.json").is_file():
            settings = settings_of(self.config, self.config.iterations(), ema_decay=self.options.ema_decay)
            train_config(self.config, settings, folder, resume=resumed(folder))
        return folder / "best_model" / "model.pth"

    def _shape(self) -> tuple[int, ...]:
        image, _ = next(calibration_pairs(self.config, 1))
        return (1, *image.shape)

    def _images(self) -> np.ndarray:
        return np.stack([image.numpy() for image, _ in calibration_pairs(self.config, self.options.samples)])

    def _quantized(self, source: Path, prefix: str) -> None:
        for name, target in {"ptq": "portable", "ptq_openvino": "openvino"}.items():
            path = self.folder / f"{prefix}{name}.onnx"
            if not path.is_file():
                ptq(source, self._images(), path, float_heads=True, engines=(), target=target)
        self._once(self.folder / f"{prefix}nncf.onnx", lambda: self._nncf(source, prefix))

    def _nncf(self, source: Path, prefix: str) -> None:
        try:
            import nncf
            import onnx
        except ImportError:
            return
        images = self._images()
        data = nncf.Dataset(list(images), lambda image: {"image": image[None]})
        made = nncf.quantize(onnx.load(source), data, subset_size=len(images))
        onnx.save(made, self.folder / f"{prefix}nncf.onnx")

    def _quantized_training(self, name: str, weights: Path, teacher: Path | None = None) -> None:
        recipe = QatRecipe(distillation=Distillation(), teacher=teacher, engines=())
        settings = settings_of(self.config, self.options.qat_iters)
        folder = self.folder / name
        train_quantized(self.config, weights, settings, folder, recipe, resume=resumed(folder))

    def _pruned(self, weights: Path) -> None:
        options, folder = self.options, self.folder / "pruned"
        recipe = PruneRecipe(
            PruneConfig(ratio=options.ratio),
            objective=options.objective,
            measure_sensitivity=not options.no_sensitivity,
            samples=64,
            shape=self._shape(),
        )
        settings = settings_of(self.config, options.retraining_iters)
        begun = (folder / "plan.json").is_file()
        prune_config(self.config, weights, settings, folder, recipe, resume=begun)


def files_of(folder: Path) -> dict[str, Path]:
    """Files that were made, by name, FP32 first."""
    names = ("fp32.onnx", "ptq.onnx", "ptq_openvino.onnx", "nncf.onnx", "qat/model_int8.onnx",
             "pruned/model.onnx", "pruned_ptq.onnx", "pruned_ptq_openvino.onnx", "pruned_nncf.onnx",
             "pruned_qat/model_int8.onnx")  # fmt: skip
    return {name: folder / name for name in names if (folder / name).is_file()}


def stored(folder: Path, name: str) -> dict[str, Any]:
    """What an earlier call measured."""
    path = folder / name
    return read_json(path) if path.is_file() else {}


def judge_all(config: Config, folder: Path, engines: list[str], images: int | None) -> None:
    """Metrics and fidelity of every file on each engine."""
    judge, found = task_judge(config, limit=images), stored(folder, "judged.json")
    for engine in engines:
        reference: list[Detections] | None = None
        for name, path in files_of(folder).items():
            key = f"{engine} {name}"
            if key in found and name != "fp32.onnx":
                continue
            told, truths = detections_of(judge.detector(open_session(path, engine)), judge.data, limit=images)
            reference = told if reference is None else reference
            metrics = metrics_of_boxes(told, truths, judge.data.num_classes, judge.test)
            found[key] = {word: float(metrics[word]) for word in ("mAP", "AP50", "AP")}  # type: ignore[arg-type]
            same = box_fidelity(reference, told, judge.data.num_classes)
            found[key] |= {"to_fp32": same.ap, "kept": same.kept, "mb": size_mb(path)}
            print(key, {word: round(value, 4) for word, value in found[key].items()}, flush=True)
            write_json(folder / "judged.json", found)


def time_all(folder: Path, engines: list[str]) -> None:
    """Median milliseconds of every file, all in turns, batch 1, one thread."""
    found = stored(folder, "timed.json")
    files = files_of(folder)
    for engine in engines:
        sessions = [open_session(path, engine, threads=1) for path in files.values()]
        runs = [(session, random_inputs(session, 1)) for session in sessions]
        times = interleaved(runs, warmup=5, repeat=_RUNS)
        for name, one in zip(files, times, strict=True):
            found[f"{engine} {name}"] = statistics.median(one)
            print(engine, name, round(found[f"{engine} {name}"], 3), flush=True)
    write_json(folder / "timed.json", {**found, "machine": describe_machine().to_json()})


def table(folders: list[Path]) -> None:
    """A row a file and engine."""
    print("| model | file | engine | mAP | AP50 | AP | kept | to FP32 | ms | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for folder in folders:
        judged, timed = stored(folder, "judged.json"), stored(folder, "timed.json")
        for key, one in judged.items():
            engine, name = key.split(" ")
            ms = f"{timed[key]:.2f}" if key in timed else ""
            cells = [f"{100 * one[word]:.2f}" for word in ("mAP", "AP50", "AP", "kept", "to_fp32")]
            print(f"| {folder.name} | {name} | {engine} | {' | '.join(cells)} | {ms} | {one['mb']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["make", "judge", "time", "table"])
    parser.add_argument("-c", "--config")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--folder", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, help="trained already")
    parser.add_argument("--until", choices=["ptq", "qat", "pruned"], default="pruned")
    parser.add_argument("--images", type=int, help="validation images that judge")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--ema-decay", type=float, default=0.998)
    parser.add_argument("--qat-iters", type=int, default=300)
    parser.add_argument("--retraining-iters", type=int, default=1000)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--objective", choices=["flops", "latency"], default="flops")
    parser.add_argument("--no-sensitivity", action="store_true")
    options = parser.parse_args()
    engines = [engine for engine in options.engine or ENGINES if engine in installed_engines()]
    for folder in [] if options.what == "table" else options.folder:
        if options.what == "time":
            time_all(folder, engines)
            continue
        config = load_config(options.config, options.sets)
        if options.what == "make":
            Making(config, folder, options).run()
        else:
            judge_all(config, folder, engines, options.images)
    if options.what == "table":
        table(options.folder)


if __name__ == "__main__":
    main()
