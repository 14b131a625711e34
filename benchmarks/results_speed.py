"""Rows of speed: Python and native runner, FP32 and INT8, for classifiers, segmentation and pruned models.

Weights are random, which changes no latency. Each engine gets the INT8 file of its own target.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from zoo import model_file

from quantrim.engines.bench import bench
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq
from quantrim.pruning import prune
from quantrim.vision.config import build_model, load_config

ENGINES = ("openvino", "onnxruntime")
NATIVE = Path("build/native/quantrim_bench")
CITYSCAPES_CLASSES = 19
#: Name in the tables → configuration of seeds 000 and 002.
SEGMENTATION = {
    "bisenetv2": "bisenetv2_cityscapes_1024x1024_160k",
    "fastscnn": "fastscnn_cityscapes_1024x1024_160k",
    "fcn_hrnetw18": "fcn_hrnetw18_cityscapes_1024x512_80k",
    "unet": "unet_cityscapes_1024x512_160k",
    "hardnet": "hardnet_cityscapes_1024x1024_160k",
    "deeplabv3p_resnet50_os8": "deeplabv3p_resnet50_os8_cityscapes_1024x512_80k",
    "deeplabv3_resnet50_os8": "deeplabv3_resnet50_os8_cityscapes_1024x512_80k",
    "gcnet_resnet50_os8": "gcnet_resnet50_os8_cityscapes_1024x512_80k",
    "pspnet_resnet50_os8": "pspnet_resnet50_os8_cityscapes_1024x512_80k",
}
#: (height, width).
SIZES = {"512x512": (512, 512), "1024x2048": (1024, 2048)}
PRUNED = ("fastscnn", "fcn_hrnetw18", "unet")
PRUNING_RATIOS = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Effort:
    """How long a figure is measured.

    Attributes:
        budget: seconds of timed runs for a comparison.
        most: runs at most; seeds 000 and 002 have 50 behind 10 for warm-up.
        folder: where exported and quantized files lie.
    """

    budget: float
    most: int
    folder: Path

    def runs(self, round_seconds: float) -> tuple[int, int]:
        """Warm-up and timed runs, when all models together take so long a round."""
        timed = max(3, min(self.most, int(self.budget / max(round_seconds, 1e-6))))
        return max(1, min(10, timed // 5)), timed


def all_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def thread_counts() -> tuple[int, ...]:
    """One, and all."""
    return tuple(dict.fromkeys((1, all_threads())))


class MainHead(nn.Module):
    """A segmentation model reduced to its main output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the first head."""
        outputs = self.model(images)
        return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


def segmentation_model(name: str, num_classes: int = CITYSCAPES_CLASSES) -> nn.Module:
    """The model of a configuration, with seeded random weights, in eval mode."""
    torch.manual_seed(0)
    config = load_config(Path("configs/cityscapes") / f"{SEGMENTATION[name]}.yml")
    return build_model(config, num_classes).eval()


def segmentation_file(name: str, size: str, folder: Path) -> Path:
    """FP32 file of a segmentation model at a fixed size, exported on the first call."""
    path = folder / f"{name}-{size}.onnx"
    if not path.exists():
        images = torch.randn(1, 3, *SIZES[size], generator=torch.Generator().manual_seed(0))
        model = MainHead(segmentation_model(name))
        export_onnx(model, images, path, dynamic_batch=False, input_names=["image"], parity=False)
    return path


def int8_file(fp32: Path, shape: Sequence[int], target: str, folder: Path) -> Path:
    """INT8 file for an engine, quantized on two random images on the first call."""
    path = folder / f"{fp32.stem}.{target}.int8.onnx"
    if not path.exists():
        images = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
        ptq(fp32, images, path, target=target, batch_size=1, refinements=(), engines=())
    return path


def classifier_speed(name: str, engine: str, threads: int, batch_size: int, effort: Effort) -> dict[str, Any]:
    """FP32 and INT8 images per second at 224x224, in Python and in C++."""
    fp32 = model_file(name)
    files = {"fp32": fp32, "int8": int8_file(fp32, (3, 224, 224), engine, effort.folder)}
    python, warmup, runs = python_ms(files, engine, threads, batch_size, effort)
    native = native_ms(files, engine, threads, batch_size, warmup, runs)
    return {"batch_size": batch_size, "runs": runs, "python_ms": python, "native_ms": native}


def segmentation_latency(name: str, size: str, engine: str, threads: int, effort: Effort) -> dict[str, Any]:
    """FP32 and INT8 milliseconds of a segmentation model, batch 1, in Python and in C++."""
    fp32 = segmentation_file(name, size, effort.folder)
    files = {"fp32": fp32, "int8": int8_file(fp32, (3, *SIZES[size]), engine, effort.folder)}
    python, warmup, runs = python_ms(files, engine, threads, 1, effort)
    native = native_ms(files, engine, threads, 1, warmup, runs)
    return {"runs": runs, "python_ms": python, "native_ms": native}


def pruned_latency(name: str, size: str, engine: str, threads: int, effort: Effort) -> dict[str, Any]:
    """Milliseconds, FLOPs and parameters of a model, whole and pruned by the L1 norm to PaddleSeg's ratios."""
    files = {"0": segmentation_file(name, size, effort.folder)}
    costs: dict[str, Mapping[str, float]] = {}
    example = torch.randn(1, 3, *SIZES[size], generator=torch.Generator().manual_seed(0))
    for ratio in PRUNING_RATIOS:
        model = segmentation_model(name)
        result = prune(model, example, ratio=ratio)
        path = effort.folder / f"{name}-{size}-pruned{ratio:g}.onnx"
        export_onnx(MainHead(model), example, path, dynamic_batch=False, input_names=["image"], parity=False)
        files[f"{ratio:g}"] = path
        costs[f"{ratio:g}"] = {"flops": result.flops["after"], "params": result.params["after"]}
        costs["0"] = {"flops": result.flops["before"], "params": result.params["before"]}
    python, _, runs = python_ms(files, engine, threads, 1, effort)
    return {"runs": runs, "python_ms": python, "costs": costs}


def python_ms(
    files: Mapping[str, Path], engine: str, threads: int, batch_size: int, effort: Effort
) -> tuple[dict[str, float], int, int]:
    """Median milliseconds of each file, all taking turns; and the warm-up and timed runs that it took."""
    options: dict[str, Any] = {"engines": (engine,), "threads": threads, "batch_size": batch_size}
    paths = list(files.values())
    first = bench(paths, warmup=1, repeat=1, **options)
    warmup, runs = effort.runs(sum(row.latency_ms.median for row in first) / 1e3)
    rows = bench(paths, warmup=warmup, repeat=runs, **options)
    return {name: row.latency_ms.median for name, row in zip(files, rows, strict=True)}, warmup, runs


def native_ms(
    files: Mapping[str, Path], engine: str, threads: int, batch_size: int, warmup: int, runs: int
) -> dict[str, float] | None:
    """Median milliseconds in the native runner, which is None where it isn't built.

    Two turns of all files, half of the runs each, and their mean, so that a change of the machine's speed
    meets all of them.
    """
    if not NATIVE.exists():
        return None
    options = [f"--engine={engine}", f"--num_threads={threads}", f"--batch_size={batch_size}", "--iterations=1",
               f"--warmup_size={warmup}", f"--repeat={math.ceil(runs / 2)}"]  # fmt: skip
    turns = [{name: native_row(path, options) for name, path in files.items()} for _ in range(2)]
    return {name: sum(turn[name]["latency_ms"]["median"] for turn in turns) / 2 for name in files}


def native_row(model: Path, options: Sequence[str]) -> dict[str, Any]:
    """What the native runner says of one file."""
    command = [str(NATIVE), f"--infer_model={model}", *options, "--json=-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    (row,) = json.loads(done.stdout)
    return dict(row)
