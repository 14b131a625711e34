"""The campaign: thousands of damaged inputs through the real readers and verbs, outcomes counted.

    python -m tests.fuzz.campaign [--models 2000] [--images 500] [--arrays 500] [--states 500]
                                  [--configurations 1000] [--requests 1000] [--seed 0]

Each case runs in a child process with a time limit. "ok" and "refused" (one short line) are right; "traceback",
"long" (a message of many lines), "crash" (a signal), "hang" and "left" (files that stay) are not, and make the
exit code 1. The input of every such case is kept in output/fuzz.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantrim.errors import QuantrimError
from tests.fuzz import configurations, files, models
from tests.fuzz.requests import ask

RIGHT = frozenset({"ok", "refused"})
_TIMEOUT_S = 60.0
_MEMORY = 12 * 10**9
Case = tuple[str, bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        cases: (count, seed) → named inputs.
        check: reads or runs an input that lies in a folder.
        suffix: of its file.
    """

    cases: Callable[[int, int], Iterator[Case]]
    check: Callable[[Path], object]
    suffix: str


def quantized(path: Path) -> None:
    """All of post-training quantization on a damaged model."""
    from quantrim.post_training import ptq

    data = np.random.default_rng(1).standard_normal((4, 3, 16, 16)).astype(np.float32)
    _neighbours(path.parent)
    ptq(path, data, path.parent / "out.onnx", engines=(), refinements=(), algo="min_max", samples=4)


def _neighbours(folder: Path) -> None:
    """What external data may name: a file, links out of the folder and to themselves, a pipe."""
    (folder / "w.bin").write_bytes(bytes(864))
    for name, target in (("link.bin", "/etc/hostname"), ("loop.bin", "loop.bin")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    if not (folder / "fifo.bin").exists():
        os.mkfifo(folder / "fifo.bin")


KINDS = {
    "models": Kind(models.mutants, quantized, ".onnx"),
    "images": Kind(files.images, files.read_image_file, ".png"),
    "arrays": Kind(files.arrays, files.read_array_file, ".npz"),
    "states": Kind(files.states, files.read_state_file, ".json"),
    "configurations": Kind(configurations.mutants, configurations.read, ".yml"),
}


def outcome(check: Callable[[Path], object], path: Path) -> tuple[str, str]:
    """What became of one case, in this process."""
    try:
        check(path)
    except (QuantrimError, MemoryError) as error:
        text = str(error)
        return ("refused" if "\n" not in text and len(text) < 900 else "long"), text[:200]
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "traceback",
            f"{type(error).__name__}: {str(error)[:100]} at {Path(place.filename).name}:{place.lineno}",
        )
    return "ok", ""


def run(kind: Kind, cases: Sequence[Case], kept: Path) -> Counter[str]:
    """Outcomes of all cases; one child after the other, a new one after each crash or hang."""
    counts: Counter[str] = Counter()
    start = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        while start < len(cases):
            for found, words in _child(kind, cases[start:], folder):
                counts[found] += 1
                if found not in RIGHT:
                    _keep(kept, cases[start], kind.suffix, found, words)
                start += 1
        left = [path.name for path in (folder / "tmp").glob("*") if not path.name.startswith("torchinductor")]
    if left:
        counts["left"] += len(left)
        print("left:", *left[:5])
    return counts


def _keep(kept: Path, case: Case, suffix: str, found: str, words: str) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{case[0]}{suffix}").write_bytes(case[1])
    print(f"{found}: {case[0]}: {words}", flush=True)


def _child(kind: Kind, cases: Sequence[Case], folder: Path) -> Iterator[tuple[str, str]]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(kind, cases, folder, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        for _ in cases:
            ready = select.select([pipe], [], [], _TIMEOUT_S)[0]
            line = pipe.readline() if ready else b""
            if line:
                found, words = json.loads(line)
                yield found, words
                continue
            if not ready:
                os.kill(child, 9)
            status = os.waitpid(child, 0)[1]
            yield ("hang", f"no end in {_TIMEOUT_S:.0f} s") if not ready else ("crash", f"status {status}")
            return
    os.waitpid(child, 0)


def _work(kind: Kind, cases: Sequence[Case], folder: Path, writing: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)  # what engines print is not counted here; tests of the command line do
    (folder / "tmp").mkdir(exist_ok=True)
    tempfile.tempdir = str(folder / "tmp")
    for name, data in cases:
        path = folder / f"{name}{kind.suffix}"
        path.write_bytes(data)
        os.write(writing, json.dumps(outcome(kind.check, path)).encode() + b"\n")
        path.unlink()
    os._exit(0)


def main() -> int:
    """Run the campaign; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "models": 2000,
        "images": 500,
        "arrays": 500,
        "states": 500,
        "configurations": 1000,
        "requests": 1000,
    }
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kept, wrong = Path("output") / "fuzz", 0
    shutil.rmtree(kept, ignore_errors=True)
    for name, kind in KINDS.items():
        if count := getattr(given, name):
            begin = time.monotonic()
            counts = run(kind, list(kind.cases(count, given.seed)), kept)
            wrong += sum(n for found, n in counts.items() if found not in RIGHT)
            print(f"{name}: {_spelled(counts)} ({time.monotonic() - begin:.0f} s)", flush=True)
    if given.requests:
        begin = time.monotonic()
        counts, faults = ask(given.requests, random.Random(given.seed))
        wrong += len(faults)
        print(*faults, sep="\n", end="\n" if faults else "")
        print(f"requests: {_spelled(counts)} ({time.monotonic() - begin:.0f} s)", flush=True)
    return int(wrong > 0)


def _spelled(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[found]} {found}" for found in sorted(counts)) + f" of {sum(counts.values())}"


if __name__ == "__main__":
    sys.exit(main())
