"""Calibration in 8 shards against one pass over 10,000 images: the same file bit for bit, and flat memory.

    python benchmarks/shards.py [--images 10000] [--shards 8] [--side 112]   # goes on where it stopped

EfficientNet-Lite0 with ImageNet weights on crops of photographs, kept as JPEG files. Every pass is
the verb itself in a process of its own; memory is the peak of that process. The last line is what `quantrim
ptq` says when a shard is lost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from photos import crops, efficientnet_lite0
from PIL import Image

from quantrim.engines.machine import describe_machine

FOLDER = Path("build/shards")
#: Crops made at once.
_BLOCK = 500
#: Pixels a side of the stored images; those of the model's input are an option.
_SIDE = 112
#: Peak memory of a command; asked for in a small process, since a child's peak begins with its parent's size.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def images(count: int) -> Path:
    """Folder of so many JPEG files."""
    folder = FOLDER / f"images-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, _BLOCK):
        if (folder / f"{min(start + _BLOCK, count) - 1:06d}.jpg").exists():
            continue
        for index, crop in enumerate(crops(min(_BLOCK, count - start), _SIDE, seed=start)):
            pixels = ((crop.transpose(1, 2, 0) * 0.5 + 0.5) * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{start + index:06d}.jpg", quality=90)
    return folder


def timed(name: str, *words: object) -> dict[str, float]:
    """Seconds and peak memory (10^6 bytes) of a verb in a process of its own; as noted, where it ran before."""
    notes = FOLDER / "rows.json"
    rows = json.loads(notes.read_text()) if notes.exists() else {}
    if name not in rows:
        start = time.perf_counter()
        verb = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "quantrim", *map(str, words)]
        code, peak = subprocess.run(verb, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        if code != "0":
            raise SystemExit(f"{name} failed")
        rows[name] = {"seconds": time.perf_counter() - start, "peak_mb": int(peak) * 1024 / 1e6}
        notes.write_text(json.dumps(rows, indent=1))
    print(f"{name:18} {rows[name]['seconds']:8.0f} s {rows[name]['peak_mb']:8.0f} MB", flush=True)
    return rows[name]


def contents(path: Path) -> dict[str, bytes]:
    """Every constant of a file."""
    return {one.name: numpy_helper.to_array(one).tobytes() for one in onnx.load(path).graph.initializer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--side", type=int, default=112, help="of the model's input")
    count, shards, side = vars(parser.parse_args()).values()
    model, data = efficientnet_lite0(FOLDER / f"efficientnet_lite0-{side}.onnx", side), images(count)
    print(describe_machine().line(), flush=True)
    how = ("--data", data, "--mean", "0.5", "--std", "0.5", "--samples", count)
    for few in (count // 100, count // 10):
        few_how = (*how[:-1], few)
        timed(f"one pass, {few}", "calibrate", model, *few_how, "-o", FOLDER / f"few-{few}.npz")
    whole = FOLDER / "whole.npz"
    timed(f"one pass, {count}", "calibrate", model, *how, "-o", whole)
    parts = [FOLDER / f"part-{index}.npz" for index in range(shards)]
    for index, part in enumerate(parts):
        timed(f"shard {index}/{shards}", "calibrate", model, *how, "--shard", f"{index}/{shards}", "-o", part)
    for name, made in (("one", [whole]), ("many", parts)):
        sketches = [word for part in made for word in ("--sketches", part)]
        words = ("ptq", model, *sketches, "-o", FOLDER / f"{name}.onnx", "--accept", "any")
        timed(f"ptq of {len(made)} part{'s' * (len(made) > 1)}", *words)
    one, many = contents(FOLDER / "one.onnx"), contents(FOLDER / "many.onnx")
    print(f"constants that differ: {sum(one[key] != many.get(key) for key in one)} of {len(one)}")
    print("files equal:", (FOLDER / "one.onnx").read_bytes() == (FOLDER / "many.onnx").read_bytes())
    print("sizes of the parts, 10^6 bytes:", [round(part.stat().st_size / 1e6, 2) for part in parts])
    lost = [word for part in parts[:3] + parts[4:] for word in ("--sketches", str(part))]
    command = [sys.executable, "-m", "quantrim", "ptq", str(model), *lost, "-o", str(FOLDER / "lost.onnx")]
    print(subprocess.run(command, capture_output=True, text=True).stderr.strip())


if __name__ == "__main__":
    main()
