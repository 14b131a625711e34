"""Rows of accuracy: FP32, fake-quant and INT8 on the engines, for models that are trained here.

Classifiers learn Fashion-MNIST (grey pictures repeated to RGB, padded to 32x32), segmentation models the
generated optic-disc set. Nothing is chosen on the validation set: the last weights count. One model with
ImageNet weights has no labelled pictures here, so its figures are agreement with FP32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from photos import crops, efficientnet_lite0
from results_speed import NATIVE, MainHead, native_row, segmentation_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from quantrim.engines import open_session
from quantrim.engines.bench import bench
from quantrim.files import size_mb
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq
from quantrim.qat import QAT, QATConfig
from quantrim.vision import models
from quantrim.vision.data.binary import evaluate_binary, read_binary, write_binary
from quantrim.vision.data.color import Normalize
from quantrim.vision.data.datasets import Source, VisionData, fashion_mnist
from quantrim.vision.data.geometry import Padding, RandomHorizontalFlip
from quantrim.vision.data.optic_disc import OpticDiscImages
from quantrim.vision.evaluate import engine_predictor, evaluate, torch_predictor
from quantrim.vision.models import load_weights
from quantrim.vision.train import TrainSettings, train
from quantrim.vision.views import Predict

FASHION = Path("/usr/share/datasets/fashion-mnist")
BATCH_SIZE = 50  # of Paddle's tests
CALIBRATION = 100


@dataclass(frozen=True)
class Study:
    """A network to train.

    Attributes:
        build: makes the network for so many classes.
        rate: learning rate of AdamW, which gets further in a short run than SGD.
    """

    build: Callable[[int], nn.Module]
    rate: float = 1e-3


CLASSIFIERS = {
    "mobilenet_v1": Study(lambda n: models.MobileNetV1(n, small_input=True), rate=2e-3),
    "mobilenet_v2": Study(models.mobilenet_v2, rate=2e-3),
    "resnet50": Study(models.resnet50),
    "resnet101": Study(models.resnet101),
    "vgg16": Study(models.vgg16, rate=1e-4),
    "vgg19": Study(models.vgg19, rate=1e-4),
}


@dataclass(frozen=True)
class Plan:
    """How much work an accuracy row may cost.

    Attributes:
        folder: for data, weights and files.
        iterations: of FP32 training.
        qat_iterations: of quantization-aware training.
        images: validation pictures.
        disc_size: side of the optic-disc pictures.
        device: "auto", "cpu" or "cuda".
    """

    folder: Path
    iterations: int
    qat_iterations: int
    images: int
    disc_size: int
    device: str


@dataclass(frozen=True)
class Rgb:
    """Grey pictures repeated to three channels."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | int]:
        picture, label = self.source[index]
        return np.repeat(picture, 3, axis=2), label


def fashion_data(split: str) -> VisionData:
    """Fashion-MNIST as RGB, 32x32."""
    prepare = (Padding((32, 32), (0,)), Normalize((0.286,) * 3, (0.353,) * 3))
    transforms = (RandomHorizontalFlip(), *prepare) if split == "train" else prepare
    return VisionData(Rgb(fashion_mnist(FASHION, split)), "classification", 10, transforms)  # type: ignore[arg-type]


def disc_data(split: str, size: int) -> VisionData:
    """The generated optic-disc set."""
    count, seed = (400, 0) if split == "train" else (76, 1)
    transforms = (RandomHorizontalFlip(), Normalize()) if split == "train" else (Normalize(),)
    return VisionData(OpticDiscImages(count, size, seed), "segmentation", 2, transforms)


def fit(model: nn.Module, study: Study, data: VisionData, plan: Plan, folder: Path) -> None:
    """Train, or load the weights of an earlier run; an interrupted run goes on."""
    best = folder / "best_model" / "model.pth"
    if not (folder / "run.json").exists():
        settings = TrainSettings(
            iterations=plan.iterations,
            batch_size=64 if data.task == "classification" else 8,
            save_interval=max(50, plan.iterations // 8),
            keep_checkpoint_max=1,
            device=plan.device,
            clip_norm=5.0,
        )
        optimizer = torch.optim.AdamW(model.parameters(), study.rate)
        begun = any(folder.glob("iter_*/state.pth"))
        train(model, settings, data, folder, loss_fn=_loss, optimizer=optimizer,
              scheduler=_cosine(optimizer, plan.iterations), resume=folder if begun else None)  # fmt: skip
    load_weights(model.cpu(), best)
    model.eval()


def _cosine(optimizer: torch.optim.Optimizer, iterations: int) -> LambdaLR:
    """Half a cosine behind a linear start over a twentieth of the run."""
    start = max(1, iterations // 20)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / start) * (0.5 + 0.5 * math.cos(math.pi * step / max(iterations, 1)))

    return LambdaLR(optimizer, factor)


def _loss(outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy, heads after the first with weight 0.4."""
    heads = outputs if isinstance(outputs, list) else [outputs]
    losses = [F.cross_entropy(head, labels) for head in heads]
    return losses[0] + 0.4 * torch.stack(losses[1:]).sum() if len(losses) > 1 else losses[0]


def fake_quant_predictor(int8: Path) -> Predict:
    """The INT8 file run literally, with float arithmetic between its quantizers: nothing is fused."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(int8), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def classifier_accuracy(name: str, plan: Plan) -> dict[str, Any]:
    """Top-1 and top-5 of a classifier: FP32, PTQ, and QAT in torch, on the engines and in C++."""
    study, folder = CLASSIFIERS[name], plan.folder / name
    torch.manual_seed(0)
    model = study.build(10)
    data, tested = fashion_data("train"), fashion_data("val")
    fit(model, study, data, plan, folder / "fp32")
    calibration = _calibration(data, tested)
    fp32, ptq_file = folder / "fp32.onnx", folder / "ptq.onnx"
    export_onnx(model, torch.zeros(1, 3, 32, 32), fp32, input_names=["image"])
    ptq(fp32, calibration, ptq_file, engines=())
    images, labels = _binary(tested, plan)

    def judged(predict: Predict) -> dict[str, float]:
        found = evaluate_binary(predict, images, labels, batch_size=BATCH_SIZE)
        return {key: found[key] for key in ("top1", "top5")}

    row = {"fp32": judged(torch_predictor(model))}
    row["ptq int8"] = judged(engine_predictor(open_session(ptq_file)))
    module, qat_file = quantization_aware(model, study, data, calibration, plan, folder / "qat")
    row["fake-quant"] = judged(torch_predictor(module))
    for engine in ("openvino", "onnxruntime"):
        row[f"int8 {engine}"] = judged(engine_predictor(open_session(qat_file, engine)))
    if NATIVE.exists():
        row["int8 native"] = _native_accuracy(qat_file, len(labels), plan)
    return {"metrics": row, "images": len(labels), "iterations": plan.iterations,
            "qat_iterations": plan.qat_iterations,
            "same_files": paced({"fp32": fp32, "ptq int8": ptq_file, "qat int8": qat_file})}  # fmt: skip


def paced(files: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Size, and median milliseconds of one image on one thread, of the files that were judged, in turns."""
    found = {name: {"mb": size_mb(path)} for name, path in files.items()}
    for engine in ("openvino", "onnxruntime"):
        rows = bench(list(files.values()), engines=(engine,), threads=1, warmup=5, repeat=50)
        for name, timed in zip(files, rows, strict=True):
            found[name][engine] = timed.latency_ms.median
    return found


def quantization_aware(
    model: nn.Module, study: Study, data: VisionData, calibration: np.ndarray, plan: Plan, folder: Path
) -> tuple[nn.Module, Path]:
    """Train a model with quantizers for a while and export it; the module as it was exported, and the file."""
    settled = round(0.75 * plan.qat_iterations)
    config = QATConfig(freeze_ranges_at=settled, freeze_batch_norm_at=settled)
    example = torch.from_numpy(calibration[:1])
    qat = QAT(model, example, config=config)
    qat.calibrate(torch.from_numpy(calibration).split(10))
    settings = TrainSettings(plan.qat_iterations, 64, plan.qat_iterations, 1, device=plan.device, clip_norm=5.0)
    optimizer = torch.optim.AdamW(qat.parameter_groups(study.rate / 20, 1e-4))
    train(qat.module, settings, data, folder, loss_fn=_loss, optimizer=optimizer,
          scheduler=_cosine(optimizer, plan.qat_iterations),
          on_iteration=lambda iteration, module: qat.advance(iteration))  # fmt: skip
    qat.module.cpu().eval()
    qat.export(folder / "model.onnx", example, input_names=["image"])
    return qat.module, folder / "model.onnx"


def _calibration(data: VisionData, tested: VisionData) -> np.ndarray:
    """Training pictures prepared as for validation."""
    plain = replace(data, transforms=tested.transforms)
    return np.stack([plain[index][0].numpy() for index in range(CALIBRATION)])


def _binary_path(plan: Plan) -> Path:
    return plan.folder / "fashion_mnist_val.bin"


def _binary(tested: VisionData, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the validation set, through Paddle's binary test format."""
    path = _binary_path(plan)
    if not path.exists():
        write_binary(path, tested)
    images, labels = read_binary(path, (3, 32, 32))
    return np.array(images[: plan.images]), np.array(labels[: plan.images])  # torch wants its own, writable


def _native_accuracy(model: Path, count: int, plan: Plan) -> dict[str, float]:
    options = [f"--infer_data={_binary_path(plan)}", f"--batch_size={BATCH_SIZE}",
               f"--iterations={math.ceil(count / BATCH_SIZE)}"]  # fmt: skip
    row = native_row(model, options)
    return {"top1": row["top1"], "top5": row["top5"]}


def segmentation_accuracy(name: str, plan: Plan) -> dict[str, Any]:
    """Mean IoU of a segmentation model: FP32, fake-quant, and INT8 on the engines, after PTQ."""
    folder, side = plan.folder / name, plan.disc_size
    data, tested = disc_data("train", side), disc_data("val", side)
    model = segmentation_model(name, num_classes=2)
    fit(model, Study(lambda n: model), data, plan, folder / "fp32")
    fp32, int8 = folder / "fp32.onnx", folder / "ptq.onnx"
    export_onnx(MainHead(model), torch.zeros(1, 3, side, side), fp32, input_names=["image"])
    ptq(fp32, _calibration(data, tested), int8, engines=())
    count = min(plan.images, len(tested))
    predictors: Mapping[str, Predict] = {
        "fp32": engine_predictor(open_session(fp32)),
        "fake-quant": fake_quant_predictor(int8),
        "int8 openvino": engine_predictor(open_session(int8)),
        "int8 onnxruntime": engine_predictor(open_session(int8, "onnxruntime")),
    }
    metrics = {
        key: {"mIoU": float(evaluate(predict, tested, limit=count)["mIoU"])}  # type: ignore[arg-type]
        for key, predict in predictors.items()
    }
    return {"metrics": metrics, "images": count, "iterations": plan.iterations, "size": side}


def pretrained_agreement(plan: Plan) -> dict[str, Any]:
    """How often EfficientNet-Lite0 with ImageNet weights gives FP32's first class, on crops of photographs."""
    fp32, int8 = plan.folder / "efficientnet_lite0.onnx", plan.folder / "efficientnet_lite0.int8.onnx"
    efficientnet_lite0(fp32)
    ptq(fp32, crops(CALIBRATION, 224, seed=0), int8, engines=())
    images = crops(min(plan.images, 500), 224, seed=1)

    def first(predict: Predict) -> np.ndarray:
        parts = [predict(images[start : start + 10]) for start in range(0, len(images), 10)]
        return np.concatenate(parts).argmax(axis=1)

    expected = first(engine_predictor(open_session(fp32)))
    predictors = {
        "fake-quant": fake_quant_predictor(int8),
        "int8 openvino": engine_predictor(open_session(int8)),
        "int8 onnxruntime": engine_predictor(open_session(int8, "onnxruntime")),
    }
    same = {key: float((first(predict) == expected).mean()) for key, predict in predictors.items()}
    return {"agreement": same, "images": len(images)}
