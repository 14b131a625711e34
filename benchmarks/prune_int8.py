r"""Pruned, then quantized: speed beyond INT8 alone, and what it costs, for classifiers on Fashion-MNIST.

    python benchmarks/prune_int8.py --folder build/prune_int8 [--nets resnet18 mobilenet_v2] [--ratio 0.6]
    python benchmarks/prune_int8.py --folder build/prune_int8 --race     # on a quiet machine

Every step is kept in the folder (training too, every 50 steps), so that a killed run goes on where it was. FP32
is trained for ``--steps``; then two models train on for ``--more`` steps with the same rate and data: the
unpruned one, and the pruned one with the unpruned one of before as teacher. Both are quantized by ``ptq`` for
OpenVINO and judged there by the 10,000 test images. ``--race`` times the files in turns, one thread, batch 1.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from quantrim.distillation import distillation_loss
from quantrim.engines import open_session
from quantrim.engines.bench import bench
from quantrim.engines.machine import describe_machine
from quantrim.files import atomic_path, write_json
from quantrim.graph.from_torch import export_onnx
from quantrim.journal import journal_beside
from quantrim.post_training import ptq
from quantrim.pruning import (
    Job,
    Known,
    Limits,
    Probe,
    PruneConfig,
    load_pruned,
    measure,
    prune_as,
    recalibrate_batch_norm,
    save_pruned,
    score,
    survey,
)

Data = dict[str, tuple[Tensor, Tensor]]
#: Steps between two saves of a training state.
SAVE_EVERY = 50


def resnet18() -> nn.Module:
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1 = nn.Conv2d(1, 64, 3, 2, 1, bias=False)
    return net


def mobilenet_v2() -> nn.Module:
    net = torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0)
    net.features[0][0] = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
    return net


NETS: dict[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}


def read(folder: Path, kind: str) -> tuple[Tensor, Tensor]:
    with gzip.open(folder / f"{kind}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{kind}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return torch.from_numpy(images.astype(np.float32) / 90 - 0.81), torch.from_numpy(labels)


def train(
    net: nn.Module, data: Data, steps: int, rate: float, state: Path, teacher: nn.Module | None = None
) -> nn.Module:
    """Train, or go on where a killed run was; batches depend on the step alone."""
    x, y = data["train"]
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    begun = 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        begun = kept["step"]
    net.train()
    for step in range(begun, steps):
        batch = torch.randint(0, len(x), (128,), generator=torch.Generator().manual_seed(step))
        images = x[batch].flip(-1) if step % 2 else x[batch]
        optimizer.zero_grad()
        outputs = net(images)
        loss = nn.functional.cross_entropy(outputs, y[batch])
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(images)
            loss = loss + distillation_loss(outputs, wanted)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            print(f"{state.name} {step + 1}/{steps} {loss.item():.3f}", flush=True)
            kept = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            with atomic_path(state) as temporary:
                torch.save(kept | {"schedule": schedule.state_dict()}, temporary)
    return net.eval()


def pruned(net: nn.Module, data: Data, ratio: float, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """The net with a share of its FLOPs removed, from the folder where that was done already."""
    if (folder / "plan.json").exists():
        return load_pruned(build(), folder).eval()
    x, y = (part[:512] for part in data["train"])
    probe, limits = Probe(zip(x.split(128), y.split(128), strict=True)), Limits(align=16, min_channels=16)
    looked = survey(net, x[:1], limits=limits)
    groups = looked.graph.groups
    job = Job(net, groups, score(net, groups, "l1"), probe, recalibrate=True)
    folder.mkdir(exist_ok=True)
    curves = measure(job, path=folder / "sensitivity.json")
    with journal_beside(folder / "widths") as journal:
        known = Known(sensitivity=curves, probe=probe, surveyed=looked, journal=journal)
        result = prune_as(net, x[:1], PruneConfig(ratio=ratio, limits=limits), known)
    recalibrate_batch_norm(net, x.split(128))
    save_pruned(net, result.plan, folder)
    return net.eval()


def files_of(name: str, net: nn.Module, data: Data, folder: Path) -> dict[str, Path]:
    """ONNX files of a net, in FP32 and INT8."""
    files = {step: folder / f"{name}{step}.onnx" for step in ("", "-int8")}
    if not files[""].exists():
        export_onnx(net, data["test"][0][:1], files[""])
    if not files["-int8"].exists():
        images = list(data["train"][0][:256].numpy())
        ptq(files[""], images, files["-int8"], target="openvino", engines=())
    return files


def top1(path: Path, data: Data) -> float:
    """On OpenVINO, by all test images."""
    session, (x, y) = open_session(path, threads=1), data["test"]
    (port,) = session.inputs
    found = [next(iter(session.run({port.name: batch.numpy()}).values())) for batch in x.split(200)]
    return float((np.concatenate(found).argmax(1) == y.numpy()).mean())


def made(name: str, data: Data, arguments: argparse.Namespace) -> None:
    """All files of one net, and their accuracy."""
    build, folder = NETS[name], arguments.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    whole = train(build(), data, arguments.steps, 0.05, folder / "fp32.pth")
    smaller = pruned(copy.deepcopy(whole), data, arguments.ratio, folder / "pruned", build)
    longer = train(copy.deepcopy(whole), data, arguments.more, 0.02, folder / "fp32-more.pth")
    smaller = train(smaller, data, arguments.more, 0.02, folder / "pruned-more.pth", teacher=whole)
    paths = [
        *files_of("fp32", longer, data, folder).values(),
        *files_of("pruned", smaller, data, folder).values(),
    ]
    write_json(folder / "top1.json", {path.name: top1(path, data) for path in paths})


def race(folder: Path) -> None:
    """Milliseconds of all files of a net in turns, and the table."""
    print(describe_machine().to_json())
    print("\n| net | file | top-1 on OpenVINO | KB | ms | speed | beyond INT8 |\n|---|---|---|---|---|---|---|")
    for one in sorted(path for path in folder.iterdir() if (path / "top1.json").exists()):
        found = json.loads((one / "top1.json").read_text())
        rows = bench([one / file for file in found], engines=("openvino",), threads=1, warmup=20, repeat=300)
        ms = [row.latency_ms.median for row in rows]
        for (file, accuracy), each in zip(found.items(), ms, strict=True):
            size = (one / file).stat().st_size / 1e3
            print(f"| {one.name} | {file} | {accuracy:.4f} | {size:.0f} | {each:.3f} | {ms[0] / each:.2f}x | "
                  f"{ms[1] / each:.2f}x |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--ratio", type=float, default=0.6, help="share of FLOPs to remove")
    parser.add_argument("--steps", type=int, default=500, help="of 128 images, of FP32 training")
    parser.add_argument("--more", type=int, default=300, help="steps of retraining")
    parser.add_argument("--race", action="store_true", help="only time the files that are there")
    arguments = parser.parse_args()
    if arguments.race:
        race(arguments.folder)
        return
    data = {kind: read(arguments.data, name) for kind, name in (("train", "train"), ("test", "t10k"))}
    for name in arguments.nets:
        made(name, data, arguments)


if __name__ == "__main__":
    main()
