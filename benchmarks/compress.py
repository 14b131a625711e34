"""compress beside NNCF's accuracy control: how fast a file each finds within the same drop, and in what time.

    python benchmarks/compress.py [--drops 2 4] [--images 200] [--json FILE]

EfficientNet-Lite0 with ImageNet weights on crops of real photographs. There are no labels, so accuracy is the
share of crops that get FP32's class; the same crops calibrate and the same others judge for both. The finished
files race in turns on OpenVINO, one thread. NNCF searches with ``quantize_with_accuracy_control``, which ranks
quantizers by the metric itself.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from photos import crops, efficientnet_lite0

from quantrim.compression import agreement_judge, compress
from quantrim.engines import open_session
from quantrim.engines.bench import bench
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json

_BATCH = 10


def batches(images: np.ndarray) -> list[np.ndarray]:
    """Images in batches."""
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def ours(source: Path, output: Path, calibration: np.ndarray, held: np.ndarray, drop: float) -> None:
    """quantrim's search."""
    name = open_session(source).inputs[0].name
    judge = agreement_judge(open_session(source), lambda: ({name: batch} for batch in batches(held)))
    compress(source, calibration, output, max_drop=drop, judge=judge, samples=len(calibration))


def nncf(source: Path, output: Path, calibration: np.ndarray, held: np.ndarray, drop: float) -> None:
    """NNCF's search."""
    import nncf as peer
    import openvino as ov

    model = ov.Core().read_model(source)
    float_model = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = [float_model(batch)[0].argmax(axis=1) for batch in batches(held)]

    def same(compiled: Any, data: Iterable[Any]) -> tuple[float, None]:
        got = [compiled(batch)[0].argmax(axis=1) for batch in data]
        return float(np.mean([a == b for a, b in zip(got, expected, strict=True)])), None

    found = peer.quantize_with_accuracy_control(
        model,
        peer.Dataset(list(calibration[:, None])),
        peer.Dataset(batches(held)),
        validation_fn=same,
        max_drop=drop / 100,
        preset=peer.QuantizationPreset.MIXED,
        subset_size=len(calibration),
    )
    ov.save_model(found, output, compress_to_fp16=False)


SEARCHES = {"quantrim": (ours, "onnx"), "NNCF": (nncf, "xml")}


def main() -> None:
    """Search with both, then race the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drops", type=float, nargs="+", default=[2.0, 4.0], help="points that may be lost")
    parser.add_argument("--images", type=int, default=200, help="crops that judge; 100 others calibrate")
    parser.add_argument(
        "--only", choices=list(SEARCHES), help="run one search alone; NNCF's takes many minutes"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    source = efficientnet_lite0(Path("build/models/efficientnet_lite0.onnx"))
    calibration, held = crops(100, 224, seed=0), crops(arguments.images, 224, seed=1)
    rows = []
    for drop in arguments.drops:
        with tempfile.TemporaryDirectory() as folder:
            chosen = [arguments.only] if arguments.only else list(SEARCHES)
            rows += compare(source, Path(folder), calibration, held, drop, chosen)
    print(describe_machine().line())
    print("| drop | search | seconds | same class | ms | speed-up |\n|---:|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['drop']:g} | {row['search']} | {row['seconds']:.0f} | {row['points']:.1f}% "
            f"| {row['ms']:.2f} | {row['speedup']:.2f}x |"
        )
    if arguments.json:
        write_json(arguments.json, {"machine": describe_machine().to_json(), "rows": rows})


def compare(
    source: Path, folder: Path, calibration: np.ndarray, held: np.ndarray, drop: float, chosen: Sequence[str]
) -> list[dict[str, Any]]:
    """One allowed drop: a row for each of the chosen searches."""
    reference = open_session(source)
    judge = agreement_judge(reference, lambda: ({reference.inputs[0].name: batch} for batch in batches(held)))
    files, seconds = {"FP32": source}, {"FP32": 0.0}
    for name in chosen:
        search, suffix = SEARCHES[name]
        files[name] = folder / f"{name}.{suffix}"
        start = time.perf_counter()
        search(source, files[name], calibration, held, drop)
        seconds[name] = time.perf_counter() - start
    times = [row.latency_ms.median for row in bench(list(files.values()), warmup=10, repeat=100)]
    rows = []
    for (name, path), median in zip(files.items(), times, strict=True):
        points, speedup = judge.points(open_session(path)), times[0] / median
        found = {"drop": drop, "search": name, "seconds": seconds[name], "points": points}
        rows.append({**found, "ms": median, "speedup": speedup})
    return rows


if __name__ == "__main__":
    main()
