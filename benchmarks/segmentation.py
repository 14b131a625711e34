"""The nine segmentation models from a short training to INT8: size, accuracy and latency, as a Markdown table.

    python benchmarks/segmentation.py [--models BiSeNetV2 ...] [--iters 60] [--cache build/segmentation.json]

Each model is trained on generated optic-disc pictures, exported, quantized for OpenVINO, judged on OpenVINO in
FP32 and INT8 on pictures it has not seen, and timed at 512x512 on one thread, FP32 and INT8 in turns. A model
that the cache holds with the same settings is not run again, so that a run that was cut off goes on.

The training is short and from random weights: the two mIoU show what INT8 costs, not what a model can reach.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantrim.engines import open_session
from quantrim.engines.bench import bench
from quantrim.engines.machine import describe_machine
from quantrim.files import read_json, size_mb, write_json
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq
from quantrim.vision.data.color import Normalize
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.data.geometry import RandomHorizontalFlip
from quantrim.vision.data.optic_disc import CLASSES, OpticDiscImages
from quantrim.vision.evaluate import engine_predictor, evaluate
from quantrim.vision.losses import cross_entropy, weighted
from quantrim.vision.models import model_from_spec, profile
from quantrim.vision.schedules import polynomial
from quantrim.vision.train import TrainSettings, train

RESNET = {"type": "ResNet50_vd", "output_stride": 8}
ATROUS = {"backbone": RESNET, "aspp_ratios": [1, 12, 24, 36]}
#: Specification, published millions of parameters for 19 classes without auxiliary heads, and who publishes it.
MODELS: dict[str, tuple[dict[str, Any], float, str]] = {
    "FastSCNN": ({"type": "FastSCNN"}, 1.11, "arXiv 1902.04502"),
    "BiSeNetV2": ({"type": "BiSeNetV2"}, 2.315, "PaddleSeg 2.8"),
    "HarDNet": ({"type": "HarDNet"}, 4.1, "its authors"),
    "FCN-HRNet-W18": ({"type": "FCN", "backbone": {"type": "HRNet_W18"}}, 9.641, "PaddleSeg 2.8"),
    "UNet": ({"type": "UNet"}, 13.406, "PaddleSeg 2.8"),
    "DeepLabV3P": ({"type": "DeepLabV3P"} | ATROUS, 26.723, "PaddleSeg 2.8"),
    "DeepLabV3": ({"type": "DeepLabV3"} | ATROUS, 39.069, "PaddleSeg 2.8"),
    "GCNet": ({"type": "GCNet", "backbone": RESNET}, 47.267, "PaddleSeg 2.8"),
    "PSPNet": ({"type": "PSPNet", "backbone": RESNET}, 65.499, "PaddleSeg 2.8"),
}
LATENCY_SIZE = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """What a row depends on beside the model."""

    iters: int
    size: int
    batch_size: int
    images: int
    repeat: int
    amp: bool


def pictures(count: int, size: int, seed: int, *, flip: bool = False) -> VisionData:
    transforms = (RandomHorizontalFlip(), Normalize()) if flip else (Normalize(),)
    source = OpticDiscImages(count, size, seed)
    return VisionData(source, "segmentation", len(CLASSES), transforms, class_names=CLASSES)


def loss_of(outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy of the main head and, at 0.4, of each auxiliary one."""
    heads = 1 if isinstance(outputs, Tensor) else len(outputs)
    return weighted([cross_entropy], [1.0] + [0.4] * (heads - 1))(outputs, labels)


def trained(model: nn.Module, settings: Settings, folder: Path) -> dict[str, float]:
    """Train in place; seconds of a step, loss of the first and the last one."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    factor = polynomial(settings.iters, warmup=min(5, settings.iters))
    starts: list[float] = []
    result = train(
        model,
        TrainSettings(settings.iters, settings.batch_size, save_interval=settings.iters, log_iters=1,
                      keep_checkpoint_max=1, amp=settings.amp, device="cpu"),
        pictures(400, settings.size, 0, flip=True),
        folder,
        loss_fn=loss_of,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
        on_iteration=lambda iteration, module: starts.append(time.perf_counter()),
        progress=False,
    )  # fmt: skip
    steps = [after - before for before, after in pairwise(starts)]
    losses = [entry["loss"] for entry in result.history]
    return {"step_s": statistics.median(steps), "loss_first": losses[0], "loss_last": losses[-1]}


def quantized(model: nn.Module, size: int, folder: Path, samples: int, *, refine: bool) -> tuple[Path, Path]:
    """FP32 and INT8 file for pictures of a size."""
    fp32, int8 = folder / f"fp32_{size}.onnx", folder / f"int8_{size}.onnx"
    calibration = pictures(samples, size, 0)
    export_onnx(Main(model), calibration[0][0][None], fp32, input_names=["image"], output_names=["logits"])
    feeds = ({"image": calibration[index][0].numpy()} for index in range(samples))
    options: dict[str, Any] = {} if refine else {"refinements": ()}
    ptq(fp32, feeds, int8, target="openvino", samples=samples, batch_size=2, engines=(), **options)
    return fp32, int8


class Main(nn.Module):
    """A model's main output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, H, W)."""
        return self.model(images)[0]


def accuracy(path: Path, settings: Settings) -> float:
    predict = engine_predictor(open_session(path, "openvino", threads=1))
    return float(evaluate(predict, pictures(settings.images, settings.size, 1))["mIoU"])  # type: ignore[arg-type]


def measure(name: str, settings: Settings) -> dict[str, float]:
    """A model's row of the table."""
    spec, _, _ = MODELS[name]
    torch.manual_seed(0)
    with torch.device("meta"):
        cost = profile(model_from_spec(spec | {"num_classes": 19}), (1, 3, LATENCY_SIZE, LATENCY_SIZE))
    model = model_from_spec(spec | {"num_classes": len(CLASSES)})
    row = {"params_m": cost.params / 1e6, "gmacs": cost.macs / 1e9}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        row |= trained(model, settings, folder / "train")
        model.eval()
        fp32, int8 = quantized(model, settings.size, folder, 64, refine=True)
        row |= {"miou_fp32": accuracy(fp32, settings), "miou_int8": accuracy(int8, settings)}
        row |= {"mb_fp32": size_mb(fp32), "mb_int8": size_mb(int8)}
        timed = quantized(model, LATENCY_SIZE, folder, 4, refine=False)
        rows = bench(timed, threads=1, warmup=2, repeat=settings.repeat)
        row |= {"ms_fp32": rows[0].latency_ms.median, "ms_int8": rows[1].latency_ms.median}
    return row


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The rows as Markdown."""
    head = ("model", "parameters", "published", "GMACs", "step s", "loss", "mIoU FP32", "mIoU INT8",
            "MB FP32 → INT8", "ms FP32", "ms INT8", "speed-up")  # fmt: skip
    lines = [" | ".join(head), " | ".join(["---"] + ["---:"] * (len(head) - 1))]
    for name, row in rows.items():
        _, published, source = MODELS[name]
        cells = (
            name,
            f"{row['params_m']:.3f} M",
            f"{published} M ({source})",
            f"{row['gmacs']:.1f}",
            f"{row['step_s']:.2f}",
            f"{row['loss_first']:.2f} → {row['loss_last']:.2f}",
            f"{row['miou_fp32']:.4f}",
            f"{row['miou_int8']:.4f}",
            f"{row['mb_fp32']:.1f} → {row['mb_int8']:.1f}",
            f"{row['ms_fp32']:.1f}",
            f"{row['ms_int8']:.1f}",
            f"{row['ms_fp32'] / row['ms_int8']:.2f}x",
        )
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--iters", type=int, default=60)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures of training and mIoU")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images", type=int, default=60, help="validation pictures")
    parser.add_argument("--repeat", type=int, default=15, help="timed runs")
    parser.add_argument("--amp", action="store_true", help="train with bfloat16 autocast")
    parser.add_argument("--cache", type=Path, default=Path("build/segmentation.json"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    settings = Settings(
        arguments.iters, arguments.size, arguments.batch_size, arguments.images, arguments.repeat, arguments.amp
    )
    kept = read_json(arguments.cache)["models"] if arguments.cache.exists() else {}
    for name in arguments.models:
        if kept.get(name, {}).get("settings") == asdict(settings):
            continue
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        row = measure(name, settings)
        machine = describe_machine()
        kept[name] = {"settings": asdict(settings), "machine": machine.line(), "row": row}
        write_json(arguments.cache, {"versions": machine.versions, "models": kept})
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    shown = {name: kept[name] for name in arguments.models}
    for line in sorted({entry["machine"] for entry in shown.values()}):
        print(line)
    print(
        f"\n{settings.iters} iterations of {settings.batch_size} pictures of {settings.size}x{settings.size}; "
        f"mIoU of {settings.images} pictures; latency at {LATENCY_SIZE}x{LATENCY_SIZE}, OpenVINO, 1 thread, "
        f"median of {settings.repeat} runs in turns; parameters and GMACs for 19 classes.\n"
    )
    print(table({name: entry["row"] for name, entry in shown.items()}))


if __name__ == "__main__":
    main()
