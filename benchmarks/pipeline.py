"""Is the input pipeline a bottleneck? Images a second of the pipeline beside those of the training step.

    python benchmarks/pipeline.py [--seconds 10] [--steps 4] [--json FILE]

For BiSeNetV2 on optic-disc pictures of 512x512 (read from files) and of 256x256 (drawn when they are asked
for), and MobileNetV1 on Fashion-MNIST, as their configurations say. With 0 workers, pictures are made
between the steps and their share is lost; with more, they are made beside them, and only a pipeline that is
slower than the step costs anything.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.vision.config import Config, build_data, build_loss, build_model, build_optimizer, load_config
from quantrim.vision.data.datasets import VisionData, training_batches
from quantrim.vision.data.optic_disc import write_optic_disc
from quantrim.vision.train import TrainSettings, train

CONFIGS = Path(__file__).parents[1] / "configs"
WORKERS = (0, 1, 2)


def pipeline_rate(data: VisionData, batch_size: int, workers: int, seconds: float) -> float:
    """Images a second that the loader gives when nothing else runs; the start of the workers is left out."""
    batches = iter(training_batches(data, batch_size, 10**6, workers=workers))
    next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += len(next(batches)[0])
    return images / (time.perf_counter() - start)


def made(data: VisionData, index: int) -> tuple[np.ndarray, np.ndarray | int]:
    """A picture as the transforms leave it, with its truth."""
    sample, truth = data.sample(index)
    return sample.image, truth if sample.mask is None else sample.mask


def step_rate(config: Config, data: VisionData, steps: int, amp: bool) -> float:
    """Images a second of the training step alone, on pictures that are ready."""
    model = build_model(config, data.num_classes)
    optimizer, scheduler = build_optimizer(config, model, iterations=steps)
    ready = [made(data, index) for index in range(config.batch_size)]
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            TrainSettings(steps + 2, config.batch_size, amp=amp, device="cpu"),
            replace(data, source=ready, transforms=()),
            folder,
            loss_fn=build_loss(config, data.ignore_index),
            optimizer=optimizer,
            scheduler=scheduler,
            on_iteration=lambda iteration, module: starts.append(time.perf_counter()),
            progress=False,
        )
    return config.batch_size / statistics.median(b - a for a, b in pairwise(starts[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each pipeline measurement")
    parser.add_argument("--steps", type=int, default=4, help="timed training steps")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast in the step")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        write_optic_disc(folder, train=40, val=1, test=1, size=512)
        tasks = {
            "BiSeNetV2, optic disc 512x512": load_config(
                CONFIGS / "quick_start/bisenet_optic_disc_512x512_1k.yml",
                [f"train_dataset.dataset_root={folder}"],
            ),
            "BiSeNetV2, generated 256x256": load_config(
                CONFIGS / "quick_start/bisenet_synthetic_disc_256x256.yml"
            ),
            "MobileNetV1, Fashion-MNIST": load_config(
                CONFIGS / "classification/mobilenet_v1_fashion_mnist.yml"
            ),
        }
        for name, config in tasks.items():
            data = build_data(config)
            rows[name] = {f"workers_{n}": pipeline_rate(data, config.batch_size, n, arguments.seconds)
                          for n in WORKERS}  # fmt: skip
            rows[name]["step"] = step_rate(config, data, arguments.steps, arguments.amp)
    print(describe_machine().line() + f", {torch.get_num_threads()} threads, images/s\n")
    print("| task | training step | " + " | ".join(f"pipeline, {n} workers" for n in WORKERS)
          + " | pipeline / step time, 0 workers |")  # fmt: skip
    print("| --- |" + " ---: |" * (len(WORKERS) + 2))
    for name, row in rows.items():
        rates = " | ".join(f"{row[f'workers_{n}']:.0f}" for n in WORKERS)
        print(f"| {name} | {row['step']:.1f} | {rates} | {row['step'] / row['workers_0']:.1%} |")
    if arguments.json:
        write_json(arguments.json, {"machine": describe_machine().to_json(), "images_per_second": rows})


if __name__ == "__main__":
    main()
