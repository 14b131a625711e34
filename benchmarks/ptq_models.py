"""Every architecture through ptq: exported, quantized, run on its engine; faster than FP32, or told why not.

    python benchmarks/ptq_models.py [--models vit_b_16 ...] [--targets openvino onnxruntime]

Random weights: latency and placement are real, accuracy is not measured here.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from zoo import CLASSIFIERS, DETECTORS, OTHERS, SIZES, model_file

from quantrim.engines.machine import describe_machine
from quantrim.post_training import ptq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*CLASSIFIERS, *OTHERS, *DETECTORS]
    parser.add_argument("--models", nargs="*", default=known, choices=known, metavar="MODEL")
    parser.add_argument("--targets", nargs="*", default=["openvino", "onnxruntime"])
    parser.add_argument("--samples", type=int, default=8)
    arguments = parser.parse_args()
    print(describe_machine().line() + ", one thread, batch 1")
    for name in arguments.models:
        source, size = model_file(name), SIZES.get(name, 224)
        images = np.random.default_rng(0).standard_normal((arguments.samples, 3, size, size)).astype(np.float32)
        for target in arguments.targets:
            with tempfile.TemporaryDirectory() as folder:
                result = ptq(source, images, Path(folder) / "q.onnx", target=target, refinements=())
            for engine in result.engines:
                print(f"{name:20}{target:13}{engine.headline}", flush=True)
                for fallback in engine.verdict.fallbacks[:2]:
                    print(f"{'':33}{fallback.node} ({fallback.mac_share:.1%}): {fallback.reason}")


if __name__ == "__main__":
    main()
