"""Prune a trained MobileNetV1, retrain it, quantize what is left: three steps on one module.

python examples/prune_fashion_mnist.py --data /usr/share/datasets/fashion-mnist [--ratio 0.5 --epochs 1]
python examples/prune_fashion_mnist.py --synthetic         # no data needed, a minute or two
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from qat_fashion_mnist import accuracy, fit, in_torch, synthetic, tensors
from torch import Tensor, nn

from quantrim.pruning import (
    Job,
    Probe,
    load_pruned,
    measure,
    prune,
    recalibrate_batch_norm,
    save_pruned,
    score,
    survey,
)
from quantrim.pruning.cost.latency import measured_side_by_side
from quantrim.qat import QAT
from quantrim.vision.data.datasets import fashion_mnist
from quantrim.vision.models import MobileNetV1


def build() -> nn.Module:
    return MobileNetV1(10, scale=0.5, in_channels=1)


def shrink(net: nn.Module, data: tuple[Tensor, Tensor], ratio: float, folder: Path) -> None:
    """Measure what each group of channels is worth on 256 pictures, remove the cheapest, write the folder."""
    batches = tuple(zip(data[0][:256].split(64), data[1][:256].split(64), strict=True))
    looked = survey(net, data[0][:1])
    groups = looked.graph.groups
    print(f"{len(groups)} groups, at most {looked.largest_ratio:.0%} of FLOPs can go")
    sensitivity = measure(Job(net, groups, score(net, groups, "l1"), Probe(batches)))
    result = prune(net, data[0][:1], ratio=ratio, sensitivity=sensitivity, surveyed=looked)
    recalibrate_batch_norm(net, (images for images, _ in batches))
    save_pruned(net, result.plan, folder)
    print(
        f"{result.achieved:.1%} of FLOPs gone, {result.params['before']} -> {result.params['after']} parameters"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--synthetic", action="store_true", help="generated pictures")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "pruned")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.synthetic:
        train, val = tensors(synthetic(2500, 0)), tensors(synthetic(1000, 1))
    else:
        train, val = (tensors(fashion_mnist(arguments.data, split)) for split in ("train", "val"))

    net = build()
    fit(net, train, arguments.epochs, 0.1)
    print(f"FP32                  {accuracy(in_torch(net, val[0]), val[1]):.4f}")
    whole = copy.deepcopy(net).eval()

    shrink(net, train, arguments.ratio, arguments.output)
    print(f"pruned                {accuracy(in_torch(net, val[0]), val[1]):.4f}")
    again = load_pruned(build(), arguments.output)
    assert torch.equal(in_torch(again, val[0]), in_torch(net, val[0]))

    fit(net, train, arguments.epochs, 0.02)
    print(f"pruned and retrained  {accuracy(in_torch(net, val[0]), val[1]):.4f}")
    before, after = measured_side_by_side([whole, net.eval()], val[0][:32])
    print(f"32 pictures on OpenVINO: {before:.2f} ms -> {after:.2f} ms")

    qat = QAT(net, train[0][:64])
    qat.calibrate(train[0][:256].split(64))
    print(f"and INT8              {accuracy(in_torch(net, val[0]), val[1]):.4f}")
    print(f"INT8 file: {qat.export(arguments.output / 'int8.onnx').size_mb:.2f} MB")


if __name__ == "__main__":
    main()
