r"""Pruned and quantized in one chain: metric, size and latency at each step, on the engine.

    python benchmarks/chain.py -c configs/quick_start/bisenet_synthetic_disc_256x256.yml --weights FILE \
        --save-dir build/chain [--pruning-ratio 0.3] [--iters 60] [--shape 1,3,512,512]

FP32, pruned and retrained, and that quantized: each file is judged on OpenVINO by the configuration's
validation set; latencies are medians of interleaved runs on one thread, at the size of ``--shape``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from quantrim.engines import open_session
from quantrim.engines.bench import bench
from quantrim.engines.machine import describe_machine
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq
from quantrim.pruning import PruneConfig
from quantrim.recipes.calibration import calibration_pairs
from quantrim.recipes.loading import load
from quantrim.recipes.prune import PruneRecipe, prune_config
from quantrim.recipes.runs import best_key
from quantrim.vision.config import load_config
from quantrim.vision.evaluate import engine_predictor, evaluate
from quantrim.vision.train import TrainSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--save-dir", type=Path, required=True)
    parser.add_argument("--pruning-ratio", type=float, default=0.3)
    parser.add_argument("--iters", type=int, default=60, help="of retraining")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--shape", default="1,3,512,512", help="of the latencies")
    arguments = parser.parse_args()
    config, folder = load_config(arguments.config), arguments.save_dir
    key, shape = best_key(config), tuple(map(int, arguments.shape.split(",")))
    settings = TrainSettings(
        arguments.iters, batch_size=config.batch_size, save_interval=arguments.iters, best_key=key
    )
    request = PruneConfig(ratio=arguments.pruning_ratio)
    recipe = PruneRecipe(request, objective="latency", shape=shape, learning_rate=arguments.learning_rate)
    prune_config(config, arguments.weights, settings, folder, recipe)
    steps = {"FP32": Path(arguments.weights), "pruned": folder / "model.pth"}
    judged, timed = {}, {}
    for name, weights in steps.items():
        module, data = (loaded := load(config, weights)).model, loaded.data
        judged[name], timed[name] = folder / f"{name}.onnx", folder / f"{name}-timed.onnx"
        export_onnx(module, data[0][0][None], judged[name])
        export_onnx(module, torch.randn(shape), timed[name], dynamic_batch=False)
        last = f"{name} + INT8"
        judged[last], timed[last] = folder / f"{name}-int8.onnx", folder / f"{name}-timed-int8.onnx"
        images = [image for image, _ in calibration_pairs(config, 100)]
        ptq(judged[name], images, judged[last], target="openvino", engines=())
        ptq(timed[name], [torch.randn(shape[1:])] * 2, timed[last], target="openvino", engines=())
    rows = bench(list(timed.values()), threads=1, warmup=5, repeat=30)
    print(describe_machine().to_json())
    print(f"\n| step | {key} on OpenVINO | MB | ms at {arguments.shape} | speed |\n|---|---|---|---|---|")
    for (name, path), row in zip(judged.items(), rows, strict=True):
        metric = evaluate(engine_predictor(open_session(path, threads=1)), data)[key]
        ms, before = row.latency_ms.median, rows[0].latency_ms.median
        print(f"| {name} | {metric:.4f} | {path.stat().st_size / 1e6:.2f} | {ms:.2f} | {before / ms:.2f}x |")


if __name__ == "__main__":
    main()
