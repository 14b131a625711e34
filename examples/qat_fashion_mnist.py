"""PaddleSlim's walk-through on quantrim: train MobileNetV1, quantize it while training, export, compare.

    python examples/qat_fashion_mnist.py --data /usr/share/datasets/fashion-mnist [--epochs 1 --qat-epochs 1]
    python examples/qat_fashion_mnist.py --cifar10 data/cifar-10-batches-bin --epochs 5 --qat-epochs 2
    python examples/qat_fashion_mnist.py --synthetic         # no data needed, a minute or two

PaddleSlim's names are used on purpose (``QAT(config).quantize``, ``save_quantized_model``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.engines import open_session
from quantrim.paddle.qat import QAT
from quantrim.vision.data.cifar import cifar10
from quantrim.vision.data.datasets import Arrays, fashion_mnist
from quantrim.vision.models import MobileNetV1

CONFIG = {
    # None: weights as they are; "PACT": clipped by a learned threshold first
    "weight_preprocess_type": None,
    "quantizable_layer_type": ["Conv2D", "Linear"],
}


def synthetic(count: int, seed: int) -> Arrays:
    """Pictures whose class is the place of a bright square."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count).astype(np.uint8)
    images = generator.integers(0, 90, (count, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 2 + 12 * (label // 5), 1 + 5 * (label % 5)
        image[row : row + 10, column : column + 5] += 120
    return Arrays(images, labels)


def tensors(data: Arrays) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(data.images.astype(np.float32))
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return (pixels - 127.5) / 127.5, torch.from_numpy(data.labels.astype(np.int64))


def fit(net: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float, batch: int = 128) -> None:
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    net.train()
    for epoch in range(epochs):
        order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(batch):
            optimizer.zero_grad()
            F.cross_entropy(net(data[0][chosen]), data[1][chosen]).backward()
            optimizer.step()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


@torch.no_grad()
def in_torch(net: nn.Module, images: Tensor) -> Tensor:
    net.eval()
    return torch.cat([net(part) for part in images.split(500)])


def on_engine(path: Path, images: Tensor, engine: str) -> Tensor:
    session = open_session(path, engine)
    port, output = session.inputs[0].name, session.outputs[0].name
    return torch.cat(
        [torch.from_numpy(session.run({port: part.numpy()})[output]) for part in images.split(500)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--cifar10", type=Path, help="folder of CIFAR-10, instead")
    parser.add_argument("--synthetic", action="store_true", help="generated images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--qat-epochs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("quant_inference_model"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.synthetic:
        train, val = tensors(synthetic(2500, 0)), tensors(synthetic(1000, 1))
    elif arguments.cifar10 is not None:
        train, val = (tensors(cifar10(arguments.cifar10, split)) for split in ("train", "val"))
    else:
        train, val = (tensors(fashion_mnist(arguments.data, split)) for split in ("train", "val"))

    net = MobileNetV1(10, scale=0.25, in_channels=train[0].shape[1])
    fit(net, train, arguments.epochs, 0.1)
    print(f"FP32                  {accuracy(in_torch(net, val[0]), val[1]):.4f}")

    quanter = QAT(CONFIG)
    quanter.quantize(net, train[0][:8])
    fit(net, train, arguments.qat_epochs, 0.01)
    print(f"INT8, simulated       {accuracy(in_torch(net, val[0]), val[1]):.4f}")

    result = quanter.save_quantized_model(net, arguments.output, input_spec=train[0][:8])
    for engine in ("onnxruntime", "openvino"):
        print(f"INT8 on {engine:<13} {accuracy(on_engine(result.path, val[0], engine), val[1]):.4f}")
    print(f"{result.path}: {result.size_mb:.2f} MB, equal codes {result.agreement.share:.4%}")


if __name__ == "__main__":
    main()
