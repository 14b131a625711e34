"""PaddleSlim's post-training example: MobileNetV1 and a folder with val_list.txt, an INT8 folder out.

    python examples/ptq_val_list.py --data_path samples_100 --model_dir MobileNetV1_infer_model
    python examples/ptq_val_list.py --synthetic              # generated images, fresh weights: nothing needed

``val_list.txt`` has lines such as ``val/ILSVRC2012_val_00000001.JPEG 65``; the label is not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from quantrim.graph.feeds import IMAGENET
from quantrim.graph.from_torch import export_onnx
from quantrim.paddle import PostTrainingQuantization
from quantrim.vision.models import MobileNetV1


def listed(folder: Path) -> Iterator[np.ndarray]:
    """Images of val_list.txt, float32 (3, 224, 224)."""
    for line in (folder / "val_list.txt").read_text(encoding="utf-8").splitlines():
        yield IMAGENET.image(folder / line.rsplit(maxsplit=1)[0], 224, 224, 3)


def generated(count: int) -> Iterator[np.ndarray]:
    """Smooth noise, which is nearer to images than white noise is."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        coarse = torch.randn(1, 3, 28, 28, generator=generator)
        yield torch.nn.functional.interpolate(coarse, size=224, mode="bilinear")[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path)
    parser.add_argument("--model_dir", type=Path, default=Path("MobileNetV1_infer_model"))
    parser.add_argument("--model_filename", default="model.onnx")
    parser.add_argument("--save_path", type=Path, default=Path("mobilenetv1_int8_model"))
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--batch_nums", type=int, default=10)
    parser.add_argument("--algo", default="KL")
    parser.add_argument("--synthetic", action="store_true")
    options = parser.parse_args()
    if not options.synthetic and options.data_path is None:
        parser.error("give --data_path, or --synthetic")
    if options.synthetic:
        torch.manual_seed(0)
        net = MobileNetV1(1000).eval()
        options.model_dir.mkdir(parents=True, exist_ok=True)
        export_onnx(net, torch.zeros(1, 3, 224, 224), options.model_dir / options.model_filename)

    def samples() -> Iterator[np.ndarray]:
        return generated(100) if options.synthetic else listed(options.data_path)

    ptq = PostTrainingQuantization(
        executor=None,
        sample_generator=samples,
        model_dir=options.model_dir,
        model_filename=options.model_filename,
        batch_size=options.batch_size,
        batch_nums=options.batch_nums,
        algo=options.algo,
    )
    result = ptq.quantize()
    ptq.save_quantized_model(options.save_path)
    print(f"{options.save_path}: {result.size_mb['int8']:.2f} MB (FP32 {result.size_mb['fp32']:.2f} MB)")
    print(result.engines[0].headline)


if __name__ == "__main__":
    main()
