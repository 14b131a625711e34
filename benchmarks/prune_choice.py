"""Who chooses widths best: small nets on Fashion-MNIST, equal FLOPs, the same retraining.

    python benchmarks/prune_choice.py --cache FILE [--data DIR] [--ratios 0.3 0.5 0.7] [--seeds 3] [--nets ...]

Images are halved to 14x14 so that nets train in a minute. Beside the default (sensitivity, then widths
together) stand its first half alone, all layers alike, PaddleSlim's threshold on the textbook sensitivity
(accuracy lost on 600 images at five ratios), l1 alone, and Torch-Pruning where it is installed. Each pruned net
gets new batch-norm statistics from 1,024 images, then a short retraining; printed are test accuracies before
and after it, mean over seeds with its standard error.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.pruning import (
    Job,
    Limits,
    Probe,
    error_rate,
    measure,
    prune,
    recalibrate_batch_norm,
    score,
    survey,
)
from quantrim.vision.models import MobileNetV1

FINE = Limits(align=2, min_channels=2)
Data = dict[str, tuple[Tensor, Tensor]]


def plain() -> nn.Module:
    layers: list[nn.Module] = []
    for inner, outer, stride in ((1, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2), (64, 96, 1)):
        layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


class Block(nn.Module):
    """Two convolutions beside one."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.side = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images or maps (N, C, H, W)."""
        return torch.relu(self.body(x) + self.side(x))


def residual() -> nn.Module:
    blocks = [Block(1, 24, 1), Block(24, 48, 2), Block(48, 64, 1), Block(64, 96, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "mobilenet_v1": lambda: MobileNetV1(10, 0.25, 1, small_input=True),
    "residual": residual,
}


def read(folder: Path, kind: str) -> tuple[Tensor, Tensor]:
    with gzip.open(folder / f"{kind}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 14, 2, 14, 2).mean((2, 4))
    with gzip.open(folder / f"{kind}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return torch.from_numpy(images).float()[:, None] / 255 / 0.353 - 0.81, torch.from_numpy(labels)


def train(net: nn.Module, data: Data, steps: int, rate: float, seed: int) -> nn.Module:
    x, y = data["train"]
    torch.manual_seed(seed)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (100,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    x, y = data["test"]
    return torch.cat([net(batch).argmax(1) for batch in x.split(500)]).eq(y).double().mean().item()


@torch.no_grad()
def flops(net: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 14, 14))
    return counter.get_total_flops()


def probe_of(data: Data) -> Probe:
    x, y = (part[:1024] for part in data["train"])
    return Probe(zip(x.split(128), y.split(128), strict=True))


def curves_of(net: nn.Module, probe: Probe, **options: object):
    groups = survey(net, probe.batches[0][0][:1], limits=FINE).graph.groups
    return measure(Job(net, groups, score(net, groups, "l1"), probe, **options))


def default(net: nn.Module, data: Data, ratio: float, together: bool = True) -> None:
    probe = probe_of(data)
    curves = curves_of(net, probe, recalibrate=True)
    prune(
        net,
        data["test"][0][:1],
        ratio=ratio,
        limits=FINE,
        sensitivity=curves,
        probe=probe if together else None,
    )


def textbook(net: nn.Module, data: Data, ratio: float) -> None:
    x, y = (part[-600:] for part in data["train"])
    probe = Probe(zip(x.split(200), y.split(200), strict=True), error_rate)
    curves = curves_of(net, probe, ratios=(0.1, 0.3, 0.5, 0.7, 0.9))
    prune(net, x[:1], ratio=ratio, limits=FINE, sensitivity=curves, method="threshold")


def uniform(net: nn.Module, data: Data, ratio: float) -> None:
    whole = copy.deepcopy(net)
    for share in np.arange(0.02, 0.9, 0.01):
        trial = copy.deepcopy(whole)
        prune(trial, data["test"][0][:1], channel_ratio=float(share), limits=FINE)
        if flops(trial) <= (1 - ratio) * flops(whole):
            prune(net, data["test"][0][:1], channel_ratio=float(share), limits=FINE)
            return


#: Torch-Pruning's importances by the names of its documentation.
PEERS = {
    "L2": ("MagnitudeImportance", {"p": 2, "group_reduction": "first"}),
    "FPGM": ("FPGMImportance", {}),
    "Taylor": ("GroupTaylorImportance", {}),
    "group norm": ("GroupMagnitudeImportance", {"p": 2}),
}


def torch_pruning(net: nn.Module, data: Data, ratio: float, kind: str) -> None:
    """The smallest global share of channels whose FLOPs are low enough."""
    import torch_pruning as tp

    x, whole = data["test"][0][:1], copy.deepcopy(net)
    name, options = PEERS[kind]
    for share in np.arange(0.02, 0.9, 0.02):
        trial = copy.deepcopy(whole)
        heads = [
            layer for layer in trial.modules() if isinstance(layer, nn.Linear) and layer.out_features == 10
        ]
        if kind == "Taylor":
            images, labels = (part[:1024] for part in data["train"])
            nn.functional.cross_entropy(trial(images), labels).backward()
        tp.pruner.MetaPruner(
            trial, x, getattr(tp.importance, name)(**options), global_pruning=True,
            pruning_ratio=float(share), round_to=2, ignored_layers=heads, max_pruning_ratio=0.9,
        ).step()  # fmt: skip
        if flops(trial) <= (1 - ratio) * flops(whole):
            trial.zero_grad()
            net.__dict__ = trial.__dict__
            return
    raise SystemExit(f"Torch-Pruning ({kind}) does not reach {ratio}")


METHODS: dict[str, Callable[[nn.Module, Data, float], None]] = {
    "quantrim (default)": default,
    "quantrim, sensitivity alone": lambda net, data, ratio: default(net, data, ratio, together=False),
    "uniform": uniform,
    "threshold, textbook sensitivity": textbook,
    "l1 alone": lambda net, data, ratio: prune(net, data["test"][0][:1], ratio=ratio, limits=FINE) and None,
}
if importlib.util.find_spec("torch_pruning"):
    METHODS |= {f"Torch-Pruning, {kind}": partial(torch_pruning, kind=kind) for kind in PEERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="JSON file that results are kept in")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--steps", type=int, default=600, help="of training; a tenth of it of retraining")
    arguments = parser.parse_args()
    data = {kind: read(arguments.data, name) for kind, name in (("train", "train"), ("test", "t10k"))}
    done = json.loads(arguments.cache.read_text()) if arguments.cache.exists() else {}
    for name in arguments.nets:
        for seed in range(arguments.seeds):
            whole: nn.Module | None = None
            for ratio in arguments.ratios:
                for method, run in METHODS.items():
                    key = f"{name}/{seed}/{ratio}/{method}"
                    if key in done:
                        continue
                    if whole is None:
                        torch.manual_seed(seed)
                        whole = train(NETS[name](), data, arguments.steps, 0.1, seed)
                    net = copy.deepcopy(whole)
                    run(net, data, ratio)
                    recalibrate_batch_norm(net, data["train"][0][:1024].split(128))
                    pruned = accuracy(net.eval(), data)
                    removed = 1 - flops(net) / flops(whole)
                    after = accuracy(train(net, data, arguments.steps // 10, 0.02, seed), data)
                    done[key] = [accuracy(whole, data), removed, pruned, after]
                    print(key, " ".join(f"{value:.4f}" for value in done[key]), flush=True)
                    write_json(arguments.cache, done)
    print(describe_machine().to_json())
    print("\n| net | ratio | widths chosen by | FLOPs | pruned | retrained |\n|---|---|---|---|---|---|")
    for name in arguments.nets:
        for ratio in arguments.ratios:
            for method in METHODS:
                rows = np.array([done[f"{name}/{seed}/{ratio}/{method}"] for seed in range(arguments.seeds)])
                error = rows.std(0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.zeros(4)
                mean = rows.mean(0)
                print(f"| {name} ({mean[0]:.3f}) | {ratio} | {method} | -{mean[1]:.1%} | "
                      f"{mean[2]:.3f} ± {error[2]:.3f} | {mean[3]:.3f} ± {error[3]:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
