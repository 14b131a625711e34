"""A fleet of 10 models and 3 targets, killed twice: what is done again, and how long everything takes.

    python benchmarks/fleet.py           # local processes
    python benchmarks/fleet.py --ray     # a Ray of this machine, one worker a core

Small architectures with random weights at 64x64, so that a step takes seconds: the work is real, accuracy is
not. The verb is killed by SIGKILL, with everything that it started left to notice by itself, after a third and
after two thirds of the files; the third run ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from photos import crops
from zoo import settle_batch_norm

from quantrim.engines.machine import describe_machine
from quantrim.graph.from_torch import export_onnx

FOLDER = Path("build/fleet")
MODELS = (
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_1"),
)
_SIDE = 64


def write_fleet() -> Path:
    """Models, images and ``fleet.yaml``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "fleet.yaml"
    if path.exists():
        return path
    images = crops(96, _SIDE, seed=0)
    np.save(FOLDER / "images.npy", images)
    for name in MODELS:
        torch.manual_seed(0)
        module = torchvision.models.get_model(name, weights=None, num_classes=100)
        settle_batch_norm(module, torch.from_numpy(images[:32]))
        export_onnx(module.eval(), torch.from_numpy(images[:1]), FOLDER / f"{name}.onnx", input_names=["image"])
    models = "".join(f"  {name}: {{file: {name}.onnx, data: images.npy}}\n" for name in MODELS)
    path.write_text(
        f"workers: 2\nmodels:\n{models}targets:\n  openvino:\n  onnxruntime:\n  portable:\n"
        "budgets:\n  faithful: {accept: faithful}\nrecipe: {samples: 32, judged: 32}\n"
    )
    return path


def finished(out: Path) -> dict[str, int]:
    """Time of writing of each finished step."""
    return {file.parent.name: file.stat().st_mtime_ns for file in out.glob("cache/*/result.json")}


def run(words: list[str], out: Path, until: int | None) -> tuple[float, set[str]]:
    """Seconds of a run, and the steps that it finished; killed as soon as so many are there."""
    before, start = finished(out), time.perf_counter()
    with (out.parent / f"{out.name}.log").open("a") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        while process.poll() is None:
            if until is not None and len(finished(out)) >= until:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.05)
    seconds, after = time.perf_counter() - start, finished(out)
    assert all(after[key] == when for key, when in before.items()), "a finished step was done again"
    return seconds, set(after) - set(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", action="store_true")
    ray = parser.parse_args().ray
    out = FOLDER / ("ray" if ray else "processes")
    path = write_fleet()
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "quantrim", "fleet", str(path), "--save-dir", str(out)] + ["--ray"] * ray
    print(describe_machine().line(), flush=True)
    third = len(MODELS)
    for number, until in enumerate((third, 2 * third, None, None), 1):
        seconds, steps = run(words, out, until)
        what = "killed" if until is not None else "to its end"
        print(f"run {number}, {what}: {seconds:6.1f} s, {len(steps)} steps finished", flush=True)
    value = json.loads((out / "fleet.json").read_text())
    print(f"{value['headline']} The last run: {value['steps']}, {value['seconds']:.1f} s.")
    whole = sum(1 for _ in finished(out))
    print(f"{whole} steps of {2 * 3 * third} are in the cache, none was done twice.")


if __name__ == "__main__":
    main()
