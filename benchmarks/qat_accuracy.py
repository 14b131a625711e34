"""Accuracy of FP32, PTQ and quantization-aware training, in simulation and on the engines, peers beside us.

    python benchmarks/qat_accuracy.py --cache FILE.json [--nets resnet18,...] [--kinds lsq,...] [--seeds 0,1,2]
    python benchmarks/qat_accuracy.py --cache FILE.json --table

Classifiers learn Fashion-MNIST (28x28, all 60,000 + 10,000 images); BiSeNetV2 learns the generated optic-disc
set (mIoU). FP32 is trained once a network, and its weights stand in a folder beside the JSON file; every
scheme is fine-tuned from there with the same data, steps and rates, and the seed is that of fine-tuning. Each
finished cell is kept in the JSON file, so the table can be made in pieces. "fp32+" is the float model trained
on for the same steps and rate: what QAT is to be compared with. torchao and Brevitas: see qat_peers.py.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import qat_peers
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from quantrim.engines import EngineName, open_session
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.qat import QAT, method
from quantrim.vision.data.optic_disc import OpticDiscImages
from quantrim.vision.models import BiSeNetV2

METHODS = ("default", "pact", "lsq")
PEERS = ("torchao", "brevitas")
KINDS = ("ptq", *METHODS, *PEERS)
#: Nothing is random in them.
UNSEEDED = ("fp32", "ptq")
BITS = (8, 4)


@dataclass(frozen=True)
class Task:
    """A network, its data, and how long it trains.

    Attributes:
        build: makes the network.
        data: (images, labels) of "train" and "val".
        steps: FP32 optimizer steps, and those of fine-tuning.
        rate: FP32 learning rate; fine-tuning takes a twentieth.
        batch: images a step.
        decay: weight decay.
        adam: AdamW instead of SGD with momentum.
        goal: metric that FP32 must reach, in percent.
    """

    build: Callable[[], nn.Module]
    data: Callable[[str], tuple[Tensor, Tensor]]
    steps: tuple[int, int]
    rate: float
    batch: int
    decay: float = 5e-4
    adam: bool = False
    goal: float = 0.0


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


def resnet18(width: int = 16) -> nn.Module:
    """torchvision's ResNet-18 of quarter width; its stem halves 28x28, without a max pool."""
    net = torchvision.models.ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    net.inplanes, net.conv1, net.bn1 = width, nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
    net.maxpool = nn.Identity()
    for index, stride in enumerate((1, 2, 2, 2)):
        setattr(net, f"layer{index + 1}", net._make_layer(BasicBlock, width * 2**index, 2, stride))
    net.fc = nn.Linear(8 * width, 10)
    return net


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 of half width; the stem halves 28x28, the next stage doesn't."""
    net = torchvision.models.mobilenet_v2(weights=None, num_classes=10, width_mult=0.5)
    net.features[0][0] = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    net.features[2].conv[1][0].stride = (1, 1)
    return net


def mobilenet_v3() -> nn.Module:
    """torchvision's MobileNetV3-small; its stem keeps 28x28."""
    net = torchvision.models.mobilenet_v3_small(weights=None, num_classes=10)
    net.features[0][0] = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
    return net


def vit_tiny() -> nn.Module:
    """timm's ViT of tiny width (192, 3 heads), 4 blocks deep, patches of 7x7."""
    sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 192, "depth": 4, "num_heads": 3}
    return timm.models.VisionTransformer(in_chans=1, num_classes=10, **sizes)


TASKS = {
    "resnet18": Task(resnet18, fashion, (2600, 60), 0.1, 128, goal=92.5),
    "mobilenet_v2": Task(mobilenet_v2, fashion, (2600, 60), 0.1, 128, goal=92.0),
    "mobilenet_v3_small": Task(mobilenet_v3, fashion, (2600, 60), 0.1, 128, goal=91.0),
    "vit_tiny": Task(vit_tiny, fashion, (3500, 60), 1e-3, 128, 0.05, adam=True, goal=90.0),
    "bisenetv2": Task(lambda: BiSeNetV2(2), optic_disc, (250, 60), 0.05, 8, 1e-4),
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
    return torch.stack([F.cross_entropy(logits.float(), labels) for logits in heads]).sum()


def fit(
    task: Task, net: nn.Module, groups: list[dict], steps: int, rate: float, seed: int,
    begin_step: Callable[[int], None] | None = None, fast: bool = False, kept: Path | None = None,
) -> None:  # fmt: skip
    """Train by one cycle; ``fast`` under bfloat16 autocast; ``kept`` is a state to go on from when stopped."""
    optimizer = (
        torch.optim.AdamW(groups, lr=rate)
        if task.adam
        else torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.1,
        cycle_momentum=False,
    )  # fmt: skip
    net.train()
    start, parts = 0, {"net": net, "optimizer": optimizer, "schedule": schedule}
    if kept is not None and kept.exists():
        states = torch.load(kept, weights_only=True)
        start = states.pop("step")
        for name, state in states.items():
            parts[name].load_state_dict(state)
    for step, (images, labels) in enumerate(batches(task.data("train"), task.batch, steps, seed)):
        if step < start:
            continue
        if kept is not None and step > start and step % 100 == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step, **states}, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
        if begin_step is not None:
            begin_step(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            outputs = net(images.contiguous(memory_format=torch.channels_last))
        loss_of(outputs, labels).backward()
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


def in_torch(net: nn.Module, switch: Callable[[bool], object] | None = None) -> Callable[[Tensor], Tensor]:
    (switch or net.train)(False)

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            outputs = net(images.contiguous(memory_format=torch.channels_last))
        return outputs[0] if isinstance(outputs, list) else outputs

    return predict


def on_engine(path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
    session = open_session(path, engine)
    feed, result = session.inputs[0].name, session.outputs[0].name
    return lambda images: torch.from_numpy(session.run({feed: images.numpy()})[result])


def float_model(name: str, task: Task, folder: Path) -> nn.Module:
    """The trained FP32 network, from ``folder`` where it has been trained before."""
    path = folder / f"{name}.pt"
    torch.manual_seed(0)
    net = task.build().to(memory_format=torch.channels_last)
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net
    fast = name in ("resnet18", "vit_tiny")  # depthwise convolutions are slower in bfloat16
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{name}.training"
    fit(task, net, plain_groups(task, net), task.steps[0], task.rate, 0, fast=fast, kept=kept)
    torch.save(net.state_dict(), path)
    kept.unlink(missing_ok=True)
    return net


def shortened(task: Task, share: float) -> Task:
    """A task of fewer steps."""
    before, after = task.steps
    return replace(task, steps=(max(1, round(share * before)), max(1, round(share * after))))


def plain_groups(task: Task, net: nn.Module) -> list[dict]:
    """Parameters with weight decay, and vectors without."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": task.decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def run(task: Task, net: nn.Module, kind: str, bits: int, seed: int) -> dict[str, float]:
    """One cell of the table: accuracy in simulation, and on the engines for 8 bits."""
    rate, steps = task.rate / 20, task.steps[1]
    if kind == "fp32":
        return {"simulated": score(task, in_torch(net))}
    if kind == "fp32+":
        fit(task, net, plain_groups(task, net), steps, rate, seed + 100)
        return {"simulated": score(task, in_torch(net))}
    if kind in PEERS:
        return _peer(task, kind, net, bits, seed)
    chosen = "default" if kind == "ptq" else kind
    config = method(chosen, weight_bits=bits, activation_bits=bits, freeze_ranges_at=steps * 3 // 4)
    qat = QAT(net, task.data("train")[0][:2], config=config)
    qat.calibrate(_calibration(task))
    if kind != "ptq":
        fit(task, net, qat.parameter_groups(rate, task.decay), steps, rate, seed + 100, qat.advance)
    result = {"simulated": score(task, in_torch(net))}
    return result if bits != 8 else result | _on_engines(task, qat)


def _on_engines(task: Task, qat: QAT) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        exported = qat.export(Path(temporary) / "int8.onnx", task.data("train")[0][:4])
        found = {
            engine: score(task, on_engine(exported.path, engine)) for engine in ("onnxruntime", "openvino")
        }
    return found | {"equal_codes": exported.agreement.share}


def _peer(task: Task, kind: str, net: nn.Module, bits: int, seed: int) -> dict[str, float]:
    """A peer's quantizers in the same loop: the same calibration, data, rate and number of steps."""
    prepared, switch = getattr(qat_peers, kind)(net, task.data("train")[0][:2], bits)
    qat_peers.calibrate(kind, prepared, switch, _calibration(task))
    switch(True)
    fit(task, prepared, plain_groups(task, prepared), task.steps[1], task.rate / 20, seed + 100)
    switch(False)
    return {"simulated": score(task, in_torch(prepared, switch))}


def _calibration(task: Task) -> list[Tensor]:
    images = task.data("train")[0]
    return [images[start : start + 8] for start in range(0, 96, 8)]


def cells() -> list[tuple[str, int]]:
    """(method, bits) of one seed; where nothing is random there is seed 0 only."""
    methods = ("ptq", *METHODS, *filter(qat_peers.available, PEERS))
    return [("fp32", 32), ("fp32+", 32), *((kind, bits) for bits in BITS for kind in methods)]


def table(cache: dict[str, dict[str, float]]) -> str:
    """Markdown: mean and standard deviation over the seeds that are there."""
    columns = ("simulated", "onnxruntime", "openvino")
    lines = [
        "| net | bits | method | simulated | ONNX Runtime | OpenVINO | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in TASKS:
        for kind, bits in [("fp32", 32), ("fp32+", 32), *((k, b) for b in BITS for k in KINDS)]:
            found = [cache[key] for key in sorted(cache) if key.rsplit("/", 1)[0] == f"{name}/{kind}/{bits}"]
            if found:
                shown = " | ".join(_spread([one[key] for one in found if key in one]) for key in columns)
                width = "FP32" if bits == 32 else f"W{bits}A{bits}"
                lines.append(f"| {name} | {width} | {kind} | {shown} | {len(found)} |")
    shares = [one["equal_codes"] for one in cache.values() if "equal_codes" in one]
    if shares:
        lines.append(f"\nEqual integer codes of file and module: {min(shares):.4%} in the worst run.")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--nets", default=",".join(TASKS))
    parser.add_argument("--kinds", default=",".join(("fp32", "fp32+", *KINDS)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--share", type=float, default=1.0, help="share of all steps, for a busy machine")
    parser.add_argument("--table", action="store_true", help="print what is there and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.cache.with_suffix(".weights")
    cache = json.loads(arguments.cache.read_text()) if arguments.cache.exists() else {}
    for seed in [] if arguments.table else map(int, arguments.seeds.split(",")):
        for name in arguments.nets.split(","):
            task = shortened(TASKS[name], arguments.share)
            for kind, bits in cells():
                key = f"{name}/{kind}/{bits}/{seed}"
                if key in cache or kind not in arguments.kinds.split(",") or (seed and kind in UNSEEDED):
                    continue
                start = time.perf_counter()
                cache[key] = run(task, float_model(name, task, folder), kind, bits, seed)
                write_json(arguments.cache, cache)
                print(key, cache[key], f"{time.perf_counter() - start:.0f} s", flush=True)
    print(describe_machine().to_json())
    print(f"{arguments.share:.0%} of all steps")
    print(table(cache))


if __name__ == "__main__":
    main()
