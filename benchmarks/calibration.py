"""Time and memory of whole post-training quantization: quantrim beside NNCF and ONNX Runtime.

    python benchmarks/calibration.py [--images 100] [--many 2000] [--large]

MobileNetV1, 224x224, all threads. Each row runs in a process of its own; memory is what that process grew
by, above the model and one image, at its peak. The bare forward pass is the floor. ``--large`` quantizes
DeepLabV3+ at 1024x2048 on four images instead, all of whose activations take more than 24 GB, and prints the
whole peak of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from zoo import model_file

from quantrim.engines.machine import describe_machine

MODEL = "mobilenet_v1"


def images(count: int) -> Iterator[np.ndarray]:
    """Images made one by one, so that the data set itself takes no memory."""
    generator = np.random.default_rng(0)
    pool = generator.standard_normal((8, 3, 224, 224)).astype(np.float32)
    for index in range(count):
        yield pool[index % 8] * np.float32(0.5 + (index % 17) / 17)


def bare(count: int) -> None:
    from quantrim.engines import open_session

    session = open_session(model_file(MODEL), "onnxruntime")
    for image in images(count):
        session.run({"image": image[None]})


def quantrim(count: int, algo: str, refinements: tuple[str, ...] = ()) -> None:
    from quantrim.post_training import ptq

    with tempfile.TemporaryDirectory() as folder:
        ptq(model_file(MODEL), images(count), Path(folder) / "q.onnx", algo=algo, samples=None, engines=(),
            refinements=refinements)  # type: ignore[arg-type]  # fmt: skip


def nncf(count: int) -> None:
    import nncf as peer
    import openvino as ov

    dataset = peer.Dataset(images(count), lambda image: image[None])
    peer.quantize(ov.Core().read_model(model_file(MODEL)), dataset, subset_size=count)


def onnxruntime(count: int, method: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        left = images(count)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image[None]}

    with tempfile.TemporaryDirectory() as folder:
        quantize_static(str(model_file(MODEL)), f"{folder}/q.onnx", Reader(), quant_format=QuantFormat.QDQ,
                        per_channel=True, calibrate_method=getattr(CalibrationMethod, method))  # fmt: skip


ROWS = {
    "bare forward pass": lambda count: bare(count),
    "quantrim kl": lambda count: quantrim(count, "kl"),
    "quantrim mse": lambda count: quantrim(count, "mse"),
    "quantrim hist": lambda count: quantrim(count, "hist"),
    "quantrim default (mse, bias)": lambda count: quantrim(count, "mse", ("bias",)),
    "NNCF": nncf,
    "ORT MinMax": lambda count: onnxruntime(count, "MinMax"),
    "ORT Entropy": lambda count: onnxruntime(count, "Entropy"),
    "ORT Percentile": lambda count: onnxruntime(count, "Percentile"),
}


def child(name: str, count: int) -> None:
    """Measure one row: a run on two images warms imports up, then the timed one."""
    ROWS[name](2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    ROWS[name](count)
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print("RESULT " + json.dumps({"seconds": seconds, "grown_mb": grown / 1e3}))


def large() -> None:
    """DeepLabV3+ at 1024x2048 with the default settings."""
    from results_speed import SIZES, segmentation_file

    from quantrim.post_training import ptq

    folder = Path("build/results/models")
    path = segmentation_file("deeplabv3p_resnet50_os8", "1024x2048", folder)
    images = np.random.default_rng(0).standard_normal((4, 3, *SIZES["1024x2048"])).astype(np.float32)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        ptq(path, images, Path(output) / "q.onnx", engines=())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"DeepLabV3+ at 1024x2048, 4 images: {time.perf_counter() - start:.0f} s, peak {peak:.1f} GB")


def measure(name: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--images", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((text for text in done.stdout.splitlines() if text.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{name} failed:\n{done.stderr[-800:]}")
    return json.loads(line.removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--many", type=int, default=0, help="also run quantrim kl on so many images")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.images)
        return
    print(describe_machine().line())
    if arguments.large:
        large()
        return
    model_file(MODEL)
    floor = None
    for name in arguments.rows:
        row = measure(name, arguments.images)
        floor = row["seconds"] if name == "bare forward pass" else floor
        ratio = f"{row['seconds'] / floor:5.1f}x bare" if floor else ""
        taken = f"{row['seconds']:8.2f} s {ratio:12}{row['grown_mb']:9.0f} MB"
        print(f"{name:30}{arguments.images:6} images{taken}", flush=True)
    if arguments.many:
        row = measure("quantrim kl", arguments.many)
        taken = f"{row['seconds']:8.2f} s {'':12}{row['grown_mb']:9.0f} MB"
        print(f"{'quantrim kl':30}{arguments.many:6} images{taken}")


if __name__ == "__main__":
    main()
