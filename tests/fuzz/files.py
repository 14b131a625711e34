"""Mutators of images, arrays and state files, and the readers that they go through."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
ODD = (
    None,
    True,
    -1,
    0,
    1e308,
    -5,
    "a",
    "",
    [],
    {},
    [[1]],
    {"a": 1},
    10**30,
    "9" * 400,
    [None] * 3,
    float("nan"),
)


def damaged(data: bytes, rnd: random.Random) -> bytes:
    """Bits flipped, a piece lost, doubled or replaced."""
    bad, kind = bytearray(data), rnd.randrange(5)
    at = rnd.randrange(len(bad) if rnd.random() < 0.5 else min(len(bad), 200))
    if kind == 0:
        return bytes(bad[:at])
    if kind == 1:
        bad[at:at] = bad[at : at + rnd.randrange(1, 50)]
    elif kind == 2:
        bad[at : at + 4] = rnd.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", rnd.randbytes(4)])
    elif kind == 3:
        del bad[at : at + rnd.randrange(1, 50)]
    else:
        for _ in range(rnd.randrange(1, 9)):
            bad[rnd.randrange(len(bad))] ^= 1 << rnd.randrange(8)
    return bytes(bad)


def images(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Damaged images of every format, some with EXIF, palettes, 16 bits or alpha."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    for number in range(count):
        rnd = random.Random(seed * 1_000_003 + number)
        kind = FORMATS[number % len(FORMATS)]
        mode = rnd.choice(["RGB", "L"] if kind in ("JPEG", "PPM", "BMP") else ["RGB", "L", "P", "RGBA"])
        image, file, exif = Image.fromarray(pixels).convert(mode), io.BytesIO(), Image.Exif()
        exif[0x0112] = rnd.choice([1, 6, 99])
        image.save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
        yield f"{kind.lower()}-{seed}-{number}", damaged(file.getvalue(), rnd)


def read_image_file(path: Path) -> None:
    """As calibration, training and masks read it."""
    from quantrim.errors import DataError
    from quantrim.graph.feeds import ImagePreprocess
    from quantrim.vision.data.datasets import read_mask

    with contextlib.suppress(DataError):
        read_mask(path)
    ImagePreprocess().image(path, 16, 16, 3)


def arrays(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Damaged archives, plain and compressed, of arrays of many types."""
    for number in range(count):
        rnd = random.Random(seed * 1_000_003 + number)
        kind = rnd.choice([np.float32, np.float64, np.uint8, np.int64, np.complex64, "U4"])
        array = np.ones((3, 3, 16, 16)).astype(kind)
        if rnd.random() < 0.3:
            array = np.asfortranarray(array)
        file = io.BytesIO()
        rnd.choice([np.savez, np.savez_compressed])(file, x=array)
        yield f"array-{seed}-{number}", damaged(file.getvalue(), rnd)


def read_array_file(path: Path) -> None:
    """As calibration reads it."""
    from quantrim.graph.feeds import calibration_feeds
    from quantrim.graph.ports import Port

    port = Port("x", (None, 3, 16, 16), np.dtype(np.float32))
    for _ in calibration_feeds(path, [port], samples=3):
        pass


def _plan() -> dict[str, Any]:
    return {
        "format": 1,
        "facts": {"ratio": 0.5},
        "kept": {"a": {"0": [0, 2]}},
        "shapes": {"a": [4, 3], "b": [4]},
    }


def _sensitivity() -> dict[str, Any]:
    point = {"ratio": 0.5, "loss": 0.1, "error": 0.01}
    curve = {"points": [point], "predicted": [0.1 * step for step in range(19)]}
    value = {"format": 1, "key": {"model": "x"}, "baseline": 1.0, "evaluations": 3, "seconds": 1.0}
    return {**value, "groups": {"g": curve}}


def _run() -> dict[str, Any]:
    return {"iteration": 2, "best_metric": 0.5, "best_iteration": 1, "history": [{"iteration": 1, "loss": 0.1}]}


def states(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Plans, sensitivities and training states with values that are none; and damaged text."""
    for number in range(count):
        rnd = random.Random(seed * 1_000_003 + number)
        kind = ("plan", "sensitivity", "state")[number % 3]
        value: Any = {"plan": _plan, "sensitivity": _sensitivity, "state": _run}[kind]()
        for _ in range(rnd.choice([1, 1, 2])):
            value = _odd(value, rnd)
        data = json.dumps(value).encode()
        if kind != "state" and number % 4 == 3:
            data = damaged(data, rnd) if rnd.random() < 0.8 else b"[" * 100_000
        yield f"{kind}-{seed}-{number}", data


def _odd(value: Any, rnd: random.Random) -> Any:
    """A copy in which one value, at any depth, is another."""
    if isinstance(value, dict) and value and rnd.random() < 0.85:
        key = rnd.choice(list(value))
        if rnd.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _odd(value[key], rnd)}
    if isinstance(value, list) and value and rnd.random() < 0.7:
        at = rnd.randrange(len(value))
        return [*value[:at], _odd(value[at], rnd), *value[at + 1 :]]
    return rnd.choice(ODD)


def read_state_file(path: Path) -> None:
    """As resuming, loading pruned weights and measuring read it."""
    if path.name.startswith("plan"):
        from quantrim.pruning.plan import read_plan

        folder = path.parent / path.stem
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").write_bytes(path.read_bytes())
        read_plan(folder)
    elif path.name.startswith("sensitivity"):
        from quantrim.pruning import load_sensitivity

        load_sensitivity(path)
    else:
        _resume(path)


def _resume(path: Path) -> None:
    import torch
    from torch import nn

    from quantrim.vision.checkpoint import RunState, load_checkpoint, save_checkpoint

    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    folder = path.parent / "iter_1"
    save_checkpoint(folder, net, optimizer, scheduler, RunState(1))
    saved = torch.load(folder / "state.pth", weights_only=True)
    rnd = random.Random(path.name)
    part = rnd.choice(["progress", "progress", "scheduler", "optimizer", "all"])
    odd = json.loads(path.read_bytes()) if part == "progress" else None
    if part == "all":
        saved = _odd(saved, rnd)
    else:
        saved[part] = odd if part == "progress" else _odd(saved[part], rnd)
    torch.save(saved, folder / "state.pth")
    load_checkpoint(folder, net, optimizer, scheduler)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
