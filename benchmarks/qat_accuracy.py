"""Accuracy of FP32, PTQ and quantization-aware training, in simulation and on ONNX Runtime.

    python benchmarks/qat_accuracy.py --cache results.json [--nets mobilenet_v1,resnet18] [--seeds 0,1,2]
    python benchmarks/qat_accuracy.py --cache results.json --table

Classifiers learn Fashion-MNIST (28x28, all 60,000 + 10,000 images); BiSeNetV2 learns the embedded
optic-disc set (mIoU). Every run is cached in the JSON file, so the table can be made in pieces. "FP32 +"
is the float model trained on for the same steps and rate as QAT: what QAT is to be compared with.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.qat import QAT, method
from quantrim.vision.data.optic_disc import OpticDiscImages
from quantrim.vision.models import BiSeNetV2, MobileNetV1

METHODS = ("default", "pact", "lsq")
BITS = (8, 4)


@dataclass(frozen=True)
class Task:
    """A network, its data, and how long it trains.

    Attributes:
        build: makes the network.
        data: (images, labels) of "train" and "val".
        steps: FP32 optimizer steps, and QAT steps.
        rate: FP32 learning rate; QAT takes a twentieth.
        batch: images a step.
    """

    build: Callable[[], nn.Module]
    data: Callable[[str], tuple[Tensor, Tensor]]
    steps: tuple[int, int]
    rate: float
    batch: int


@lru_cache
def fashion(split: str, root: Path = Path("/usr/share/datasets/fashion-mnist")) -> tuple[Tensor, Tensor]:
    prefix = "train" if split == "train" else "t10k"
    images = gzip.decompress((root / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((root / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32)
    return torch.from_numpy((pixels - 72.9) / 90.0), torch.from_numpy(
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    )


@lru_cache
def optic_disc(split: str, size: int = 128) -> tuple[Tensor, Tensor]:
    source = OpticDiscImages(
        count=160 if split == "train" else 76, size=size, seed=0 if split == "train" else 1
    )
    pairs = [source[index] for index in range(len(source))]
    images = np.stack([picture for picture, _ in pairs]).astype(np.float32).transpose(0, 3, 1, 2)
    masks = np.stack([mask for _, mask in pairs]).astype(np.int64)
    return torch.from_numpy((images - 127.5) / 127.5), torch.from_numpy(masks)


def mobilenet_v2() -> nn.Module:
    net = torchvision.models.mobilenet_v2(weights=None, num_classes=10, width_mult=0.5)
    net.features[0][0] = nn.Conv2d(1, 16, 3, 2, 1, bias=False)  # grey pictures
    return net


def resnet18() -> nn.Module:
    net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=10)
    net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net


TASKS = {
    "mobilenet_v1": Task(lambda: MobileNetV1(10, 0.25, 1, small_input=True), fashion, (600, 150), 0.1, 128),
    "mobilenet_v2": Task(mobilenet_v2, fashion, (600, 150), 0.1, 128),
    "resnet18": Task(resnet18, fashion, (300, 60), 0.05, 64),
    "bisenetv2": Task(lambda: BiSeNetV2(2), optic_disc, (250, 60), 0.05, 8),
}


def batches(data: tuple[Tensor, Tensor], size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(data[0]), generator=generator) for _ in range(1 + steps * size // len(data[0]))]
    )
    for step in range(steps):
        chosen = order[step * size : (step + 1) * size]
        images = data[0][chosen]
        labels = data[1][chosen]
        flipped = torch.rand(len(chosen), generator=generator) < 0.5
        images[flipped] = images[flipped].flip(-1)
        if labels.dim() > 1:
            labels[flipped] = labels[flipped].flip(-1)
        yield images, labels


def loss_of(outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    heads = outputs if isinstance(outputs, list) else [outputs]
    return torch.stack([F.cross_entropy(logits, labels) for logits in heads]).sum()


def fit(
    task: Task, net: nn.Module, groups: list[dict], steps: int, rate: float, seed: int, qat: QAT | None = None
) -> None:
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.1,
        cycle_momentum=False,
    )  # fmt: skip
    net.train()
    for step, (images, labels) in enumerate(batches(task.data("train"), task.batch, steps, seed)):
        if qat is not None:
            qat.advance(step)
        optimizer.zero_grad()
        loss_of(net(images), labels).backward()
        optimizer.step()
        schedule.step()


def score(task: Task, predict: Callable[[Tensor], Tensor]) -> float:
    """Top-1 in percent, or mIoU in percent for masks."""
    images, labels = task.data("val")
    size = 250 if labels.dim() == 1 else 4
    predicted = torch.cat([predict(part).argmax(1) for part in images.split(size)])
    if labels.dim() == 1:
        return 100 * (predicted == labels).double().mean().item()
    unions = [((predicted == c) | (labels == c)).sum().item() for c in (0, 1)]
    shared = [((predicted == c) & (labels == c)).sum().item() for c in (0, 1)]
    return 100 * float(np.mean([a / b for a, b in zip(shared, unions, strict=True)]))


def in_torch(net: nn.Module) -> Callable[[Tensor], Tensor]:
    net.eval()

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            outputs = net(images)
        return outputs[0] if isinstance(outputs, list) else outputs

    return predict


def on_engine(path: Path) -> Callable[[Tensor], Tensor]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def float_model(name: str, seed: int, folder: Path) -> nn.Module:
    """The trained FP32 network, from ``folder`` where it has been trained before."""
    task, path = TASKS[name], folder / f"{name}-{seed}.pt"
    torch.manual_seed(seed)
    net = task.build()
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net
    fit(task, net, [{"params": list(net.parameters()), "weight_decay": 1e-4}], task.steps[0], task.rate, seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net


def run(name: str, seed: int, kind: str, bits: int, folder: Path) -> dict[str, float]:
    """One cell of the table: accuracy in simulation, and on the engine for 8 bits."""
    task = TASKS[name]
    net = copy.deepcopy(float_model(name, seed, folder))
    rate, steps = task.rate / 20, task.steps[1]
    if kind == "fp32":
        return {"simulated": score(task, in_torch(net))}
    if kind == "fp32+":
        fit(task, net, [{"params": list(net.parameters()), "weight_decay": 1e-4}], steps, rate, seed + 100)
        return {"simulated": score(task, in_torch(net))}
    images = task.data("train")[0]
    chosen = "default" if kind == "ptq" else kind
    config = method(chosen, weight_bits=bits, activation_bits=bits, freeze_ranges_at=steps * 3 // 4)
    qat = QAT(net, images[:2], config=config)
    qat.calibrate([images[start : start + 8] for start in range(0, 96, 8)])
    if kind != "ptq":
        fit(task, net, qat.parameter_groups(rate, 1e-4), steps, rate, seed + 100, qat)
    result = {"simulated": score(task, in_torch(net))}
    if bits == 8:
        with tempfile.TemporaryDirectory() as temporary:
            exported = qat.export(Path(temporary) / "int8.onnx", images[:4])
            result["engine"] = score(task, on_engine(exported.path))
            result["equal_codes"] = exported.agreement.share
    return result


def cells() -> Iterator[tuple[str, int]]:
    yield from (("fp32", 32), ("fp32+", 32))
    yield from ((kind, bits) for bits in BITS for kind in ("ptq", *METHODS))


def table(cache: dict[str, dict[str, float]]) -> str:
    """Markdown: mean and standard deviation over the seeds that are there."""
    lines = ["| net | bits | method | simulated | on ONNX Runtime | runs |", "|---|---|---|---|---|---|"]
    for name in TASKS:
        for kind, bits in cells():
            found = [cache[key] for key in sorted(cache) if key.rsplit("/", 1)[0] == f"{name}/{kind}/{bits}"]
            if found:
                shown = " | ".join(
                    _spread([one[key] for one in found if key in one]) for key in ("simulated", "engine")
                )
                width = "FP32" if bits == 32 else f"W{bits}A{bits}"
                lines.append(f"| {name} | {width} | {kind} | {shown} | {len(found)} |")
    shares = [one["equal_codes"] for one in cache.values() if "equal_codes" in one]
    if shares:
        lines.append(f"\nEqual integer codes of file and module: {min(shares):.4%} in the worst run.")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--nets", default=",".join(TASKS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true", help="print what is there and train nothing")
    arguments = parser.parse_args()
    cache = json.loads(arguments.cache.read_text()) if arguments.cache.exists() else {}
    if not arguments.table:
        for seed in map(int, arguments.seeds.split(",")):
            for name in arguments.nets.split(","):
                for kind, bits in cells():
                    key = f"{name}/{kind}/{bits}/{seed}"
                    if key in cache:
                        continue
                    start = time.perf_counter()
                    cache[key] = run(name, seed, kind, bits, arguments.cache.with_suffix(".weights"))
                    write_json(arguments.cache, cache)
                    print(key, cache[key], f"{time.perf_counter() - start:.0f} s", flush=True)
    print(describe_machine().to_json())
    print(table(cache))


if __name__ == "__main__":
    main()
