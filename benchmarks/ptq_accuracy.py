"""OutputAgreement with FP32 of quantrim's, NNCF's and ONNX Runtime's INT8 files, each on its engine.

    python benchmarks/ptq_accuracy.py [--images 200] [--calibration 100] [--json FILE]

A real pretrained model (EfficientNet-Lite0, ImageNet) on crops of real photographs; the same calibration
crops for everybody, other crops for the comparison. There are no labels, so the figures are distances
from the FP32 model: share of equal top-1 classes, SQNR and cosine of the logits.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from photos import crops, efficientnet_lite0
from ptq_latency import quantize_nncf_onnx, quantize_nncf_openvino, quantize_onnxruntime

from quantrim.engines import open_session
from quantrim.engines.compare import compare as compare_sessions
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.judges import OutputAgreement
from quantrim.post_training import ptq

Maker = Callable[[Path, Path, np.ndarray], Path]


def quantrim(source: Path, folder: Path, images: np.ndarray, **options: object) -> Path:
    output = folder / "quantrim.onnx"
    ptq(source, images, output, engines=(), **options)  # type: ignore[arg-type]
    return output


def variants(thorough: bool) -> dict[str, tuple[Maker, tuple[str, ...]]]:
    """Name → (quantizer, engines its file is measured on)."""
    both = ("openvino", "onnxruntime")
    made: dict[str, tuple[Maker, tuple[str, ...]]] = {
        "quantrim default": (quantrim, both),
        "quantrim, bias corrected": (partial(quantrim, refinements=["bias"]), both),
        "NNCF (OpenVINO)": (quantize_nncf_openvino, ("openvino",)),
        "NNCF (ONNX)": (quantize_nncf_onnx, ("onnxruntime",)),
        "ORT quantizer u8s8": (quantize_onnxruntime, both),
    }
    if thorough:
        for algo in ("kl", "hist", "min_max", "avg", "emd"):
            made[f"quantrim {algo}"] = (partial(quantrim, algo=algo), ("openvino",))
        made["quantrim, weights mse"] = (partial(quantrim, weight_algo="mse"), ("openvino",))
        made["quantrim, equalize+bias"] = (partial(quantrim, refinements=["equalize", "bias"]), ("openvino",))
        made["quantrim, adaround+bias"] = (partial(quantrim, refinements=["adaround", "bias"]), ("openvino",))
    return made


def compare(float_path: Path, int8_path: Path, engine: str, images: np.ndarray) -> OutputAgreement:
    reference, candidate = open_session(float_path, engine), open_session(int8_path, engine)
    feeds = [{reference.inputs[0].name: images[i : i + 10]} for i in range(0, len(images), 10)]
    return compare_sessions(reference, candidate, feeds).outputs[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=100)
    parser.add_argument("--thorough", action="store_true", help="also every estimator and refinement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    calibration, images = crops(arguments.calibration, 224, seed=0), crops(arguments.images, 224, seed=1)
    source = efficientnet_lite0(Path("build/models/efficientnet_lite0.onnx"))
    print(describe_machine().line())
    print(f"EfficientNet-Lite0, {len(calibration)} calibration crops, {len(images)} test crops")
    print(f"{'quantizer':28}{'engine':13}{'top-1 same':>11}{'SQNR dB':>9}{'cosine':>9}{'seconds':>9}")
    rows = []
    for name, (make, engines) in variants(arguments.thorough).items():
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            path = make(source, Path(folder), calibration)
            seconds = time.perf_counter() - start
            for engine in engines:
                same = compare(source, path, engine, images)
                rows.append({"quantizer": name, "engine": engine, "seconds": seconds, "top1": same.top1,
                             "sqnr_db": same.sqnr_db, "cosine": same.cosine})  # fmt: skip
                print(f"{name:28}{engine:13}{same.top1:11.1%}{same.sqnr_db:9.2f}{same.cosine:9.5f}{seconds:9.1f}",
                      flush=True)  # fmt: skip
    if arguments.json:
        write_json(arguments.json, {"machine": describe_machine().to_json(), "rows": rows})


if __name__ == "__main__":
    main()
