"""INT8 latency of quantrim's files beside NNCF's and ONNX Runtime's quantizer, interleaved in one run.

    python benchmarks/ptq_latency.py [--models mobilenet_v1 ...] [--repeat 30] [--json FILE]

Each quantizer gets the same FP32 file and the same calibration images. NNCF works on OpenVINO's own
format for OpenVINO and on ONNX for ONNX Runtime, its best path on each.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from zoo import CLASSIFIERS, OTHERS, SIZES, model_file

from quantrim.engines import open_session, random_inputs
from quantrim.engines.bench import interleaved
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.post_training import ptq

Images = np.ndarray


def quantize_nncf_openvino(source: Path, folder: Path, images: Images) -> Path:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(source)
    dataset = nncf.Dataset(images, lambda image: image[None])
    quantized = nncf.quantize(model, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
    ov.save_model(quantized, folder / "nncf.xml", compress_to_fp16=False)
    return folder / "nncf.xml"


def quantize_nncf_onnx(source: Path, folder: Path, images: Images) -> Path:
    import nncf

    model = onnx.load(source)
    name = model.graph.input[0].name
    dataset = nncf.Dataset(images, lambda image: {name: image[None]})
    quantized = nncf.quantize(model, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
    onnx.save(quantized, folder / "nncf.onnx")
    return folder / "nncf.onnx"


def quantize_onnxruntime(source: Path, folder: Path, images: Images) -> Path:
    """ONNX Runtime's quantizer with the settings that are fastest on x86: u8 activations, s8 weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {name: image[None]}

    quant_pre_process(str(source), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "prepared.onnx"),
        str(folder / "ort.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return folder / "ort.onnx"


def quantize_quantrim(source: Path, folder: Path, images: Images) -> Path:
    ptq(source, images, folder / "quantrim.onnx", engines=())
    return folder / "quantrim.onnx"


QUANTIZERS: dict[str, dict[str, Callable[[Path, Path, Images], Path]]] = {
    "openvino": {
        "quantrim": quantize_quantrim, "nncf": quantize_nncf_openvino, "ort": quantize_onnxruntime,
    },
    "onnxruntime": {
        "quantrim": quantize_quantrim, "nncf": quantize_nncf_onnx, "ort": quantize_onnxruntime,
    },
}  # fmt: skip


def measure(name: str, folder: Path, repeat: int) -> dict[str, dict[str, float]]:
    """Median milliseconds by engine and quantizer; "fp32" among them."""
    source, size = model_file(name), SIZES.get(name, 224)
    images = np.random.default_rng(0).standard_normal((8, 3, size, size)).astype(np.float32)
    result: dict[str, dict[str, float]] = {}
    made: dict[Callable[..., Path], Path] = {}
    for engine, quantizers in QUANTIZERS.items():
        files = {"fp32": source}
        for label, quantize in quantizers.items():
            try:
                if quantize not in made:
                    made[quantize] = quantize(source, folder, images)
                files[label] = made[quantize]
            except Exception as error:  # a peer's failure is a row of the table
                print(f"  {label} failed on {name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
        sessions = [open_session(path, engine, threads=1) for path in files.values()]
        feed = random_inputs(sessions[0])
        pairs = [
            (session, {port.name: a for port, a in zip(session.inputs, feed.values(), strict=True)})
            for session in sessions
        ]
        times = interleaved(pairs, warmup=6, repeat=repeat)
        result[engine] = {label: float(np.median(row)) for label, row in zip(files, times, strict=True)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(CLASSIFIERS), choices=[*CLASSIFIERS, *OTHERS])
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(describe_machine().line() + ", one thread, batch 1, median")
    titles = "".join(f"{title:>18}" for title in ("quantrim", "NNCF", "ORT quantizer"))
    print(f"{'model':20}{'engine':13}{'FP32 ms':>9}{titles}{'vs best peer':>14}")
    rows, ratios = {}, {"openvino": [], "onnxruntime": []}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(name, Path(folder), arguments.repeat)
        for engine, times in rows[name].items():
            cells = "".join(
                f"{times[label]:9.2f} ({times['fp32'] / times[label]:4.2f}x)"
                if label in times
                else f"{'failed':>17}"
                for label in ("quantrim", "nncf", "ort")
            )
            best = min(times.get(label, math.inf) for label in ("nncf", "ort"))
            ratios[engine].append((times["fp32"] / times["quantrim"], times["fp32"] / best))
            print(
                f"{name:20}{engine:13}{times['fp32']:9.2f} {cells}{best / times['quantrim']:13.2f}x", flush=True
            )
    for engine, pairs in ratios.items():
        ours, best = (math.exp(np.mean(np.log([pair[i] for pair in pairs]))) for i in (0, 1))
        print(f"geomean {engine}: quantrim {ours:.2f}x, best of peers {best:.2f}x")
    if arguments.json:
        write_json(arguments.json, {"machine": describe_machine().to_json(), "median_ms": rows})


if __name__ == "__main__":
    main()
