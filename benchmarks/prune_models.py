"""Every model pruned at 0.1, 0.2 and 0.3: checked, reloaded, exported, and timed on OpenVINO.

    python benchmarks/prune_models.py --cache prune.json [--only unet,fast_scnn] [--objective latency] [--int8]

Weights are random, so that only structure and speed are judged: the self-check of pruning, a freshly built
model that reloads to equal outputs, ONNX Runtime's difference from torch (relative to the largest output),
and the median of interleaved runs of the original and the pruned file on one thread. Segmentation nets run at
512x512, classifiers at 224x224. ``--int8`` quantizes both files as well, and all four race: what pruning brings
beyond INT8 alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantrim.engines.bench import bench
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq
from quantrim.pruning import load_pruned, prune, save_pruned
from quantrim.pruning.cost.latency import Engine
from quantrim.pruning.for_latency import prune_for_latency
from quantrim.vision import models as own

RATIOS = (0.1, 0.2, 0.3)


def cbs(inner: int, outer: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    """Convolution, batch norm, SiLU."""
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.SiLU())


class C2f(nn.Module):
    """YOLOv8's block: one half passes bottlenecks, every intermediate result is joined."""

    def __init__(self, inner: int, outer: int, count: int) -> None:
        super().__init__()
        half = outer // 2
        self.first, self.last = cbs(inner, outer), cbs((2 + count) * half, outer)
        self.middle = nn.ModuleList(nn.Sequential(cbs(half, half, 3), cbs(half, half, 3)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 (N, inner, H, W) to (N, outer, H, W)."""
        parts = list(self.first(x).chunk(2, 1))
        for block in self.middle:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class YoloNet(nn.Module):
    """A backbone of C2f blocks with YOLOv8n's widths, and a classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [cbs(3, 16, 3, 2)]
        for inner, outer, count in ((16, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 1)):
            layers += [cbs(inner, outer, 3, 2), C2f(outer, outer, count)]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 (N, 3, H, W) to logits (N, classes)."""
        return self.head(self.body(x).mean((2, 3)))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "bisenetv2": (lambda: own.BiSeNetV2(19), 512),
    "fcn_hrnet_w18": (lambda: own.FCN(19, own.hrnet_w18()), 512),
    "fast_scnn": (lambda: own.FastSCNN(19), 512),
    "fast_scnn_2_classes": (lambda: own.FastSCNN(2), 512),
    "hardnet": (lambda: own.HarDNet(19), 512),
    "unet": (lambda: own.UNet(19), 512),
    "deeplabv3p": (lambda: own.DeepLabV3P(19, own.resnet50_vd()), 512),
    "mobilenet_v1": (lambda: own.MobileNetV1(num_classes=1000), 224),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(), 224),
    "mobilenet_v3_large": (lambda: tv.mobilenet_v3_large(), 224),
    "resnet18": (lambda: tv.resnet18(), 224),
    "resnet50": (lambda: tv.resnet50(), 224),
    "vit_b_16": (lambda: tv.vit_b_16(), 224),
    "vgg16": (lambda: tv.vgg16_bn(), 224),
    "shufflenet_v2": (lambda: tv.shufflenet_v2_x1_0(), 224),
    "densenet121": (lambda: tv.densenet121(), 224),
    "yolo_c2f": (YoloNet, 224),
}


def measure(name: str, ratio: float, objective: str, int8: bool = False) -> dict[str, Any]:
    """One row of the table."""
    build, size = MODELS[name]
    torch.manual_seed(0)
    module, x = build().eval(), torch.randn(1, 3, size, size)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        export_onnx(module, x, before, dynamic_batch=False, parity=False)
        if objective == "latency":
            result, _, _ = prune_for_latency(module, x, ratio, Engine(repeat=3))
        else:
            result = prune(module, x, ratio=ratio)
        seconds = time.perf_counter() - start
        save_pruned(module, result.plan, folder)
        again = load_pruned(build(), folder).eval()
        small = x[..., :128, :128]
        with torch.no_grad():
            expected, got = (tree_leaves(one(small))[0] for one in (module, again))
        with torch.no_grad():
            largest = float(tree_leaves(again(x))[0].abs().max())
        parity = export_onnx(again, x, after, dynamic_batch=False) / largest
        files = [before, after]
        if int8:
            for path in (before, after):
                files.append(path.with_suffix(".int8.onnx"))
                ptq(path, [torch.randn(3, size, size).numpy()] * 2, files[-1], target="openvino", engines=())
        rows = bench(files, engines=("openvino",), threads=1, warmup=3, repeat=15)
    old, new, *quantized = (row.latency_ms.median for row in rows)
    return {
        "flops": 1 - result.flops["after"] / result.flops["before"],
        "params": 1 - result.params["after"] / result.params["before"],
        "frozen": len([f for f in result.frozen if "output of the model" not in f.reason]),
        "reloaded": bool(torch.equal(expected, got)),
        "parity": parity,
        "ms": [old, new],
        "int8_ms": quantized,
        "seconds": seconds,
    }


def table(cache: dict[str, dict[str, Any]]) -> str:
    """Markdown of what is there."""
    lines = [
        "| model | objective | ratio | FLOPs | parameters | ms before | ms after | latency | reload, parity "
        "| found and removed in | INT8 | pruned INT8 | beyond INT8 | over FP32 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in cache.items():
        name, objective, ratio, *_ = key.split("/")
        old, new = row["ms"]
        same = "equal" if row["reloaded"] else "DIFFERS"
        alone, both = row.get("int8_ms") or (float("nan"), float("nan"))
        lines.append(
            f"| {name} | {objective} | {ratio} | -{row['flops']:.1%} | -{row['params']:.1%} | {old:.2f} "
            f"| {new:.2f} | {new / old - 1:+.1%} | {same}, {row['parity']:.0e} | {row['seconds']:.0f} s "
            f"| {alone:.2f} | {both:.2f} | {alone / both:.2f}x | {old / both:.2f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="JSON file of finished rows")
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    parser.add_argument("--int8", action="store_true", help="quantize both files, and let all four race")
    parser.add_argument("--objective", choices=("flops", "latency"), default="flops")
    arguments = parser.parse_args()
    cache = json.loads(arguments.cache.read_text()) if arguments.cache.exists() else {}
    for name in arguments.only.split(","):
        for ratio in map(float, arguments.ratios.split(",")):
            key = f"{name}/{arguments.objective}/{ratio}" + ("/int8" if arguments.int8 else "")
            if key not in cache:
                cache[key] = measure(name, ratio, arguments.objective, arguments.int8)
                write_json(arguments.cache, cache)
                print(key, cache[key], flush=True)
    print(describe_machine().to_json())
    print(table(cache))


if __name__ == "__main__":
    main()
