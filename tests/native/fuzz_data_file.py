"""Fuzz the native runner's reader of data files under AddressSanitizer and UndefinedBehaviorSanitizer.

python tests/native/fuzz_data_file.py [--files 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = [HERE / "fuzz_data_file.cpp", HERE.parents[1] / "cpp" / "src" / "data_file.cpp"]
FLAGS = ["-std=c++17", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(program: Path, compiler: str = "g++") -> None:
    """Compile the reader with its harness and both sanitizers."""
    subprocess.run([compiler, *FLAGS, *map(str, SOURCES), "-o", str(program)], check=True)


def data_file(rnd: random.Random, images: int = 3, values: int = 60) -> bytes:
    """A good file, or one whose head, size or bytes are wrong."""
    pixels = b"".join(struct.pack("<f", rnd.random()) for _ in range(images * values))
    whole = struct.pack("<q", images) + pixels + struct.pack("<3q", *range(images))
    kind = rnd.randrange(6)
    if kind == 0:
        return whole
    if kind == 1:
        return struct.pack("<q", rnd.choice([-1, 0, 2, 4, 2**31, 2**62, -(2**63)])) + whole[8:]
    if kind == 2:
        return whole[: rnd.randrange(len(whole))]
    if kind == 3:
        return whole + rnd.randbytes(rnd.randrange(1, 2000))
    if kind == 4:
        return rnd.randbytes(rnd.randrange(0, 3000))
    return struct.pack("<q", rnd.randrange(1, 9)) + whole[8 : 8 + rnd.choice([12, 16, 20, 248, 496])]


def run(program: Path, files: int, seed: int, folder: Path) -> str:
    """Count of files that were read and refused; CalledProcessError where a sanitizer spoke."""
    paths = []
    for number in range(files):
        paths.append(folder / f"{number}.bin")
        paths[-1].write_bytes(data_file(random.Random(seed * 1_000_003 + number)))
    done = subprocess.run([str(program), *map(str, paths)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    """Build and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        build(Path(name) / "fuzz")
        try:
            print(run(Path(name) / "fuzz", given.files, given.seed, Path(name)))
        except subprocess.CalledProcessError as error:
            sys.exit(error.stderr)


if __name__ == "__main__":
    main()
