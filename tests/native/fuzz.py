"""Fuzz what the native runner reads and writes itself under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/native/fuzz.py [--files 2000] [--seed 0] [--models 0 --runner PROGRAM]

The reader of data files, the command line, the JSON of results, shapes, scores and labels, and files put in
place. With ``--models``, a runner built with the sanitizers (``make fuzz-native``) opens damaged models.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CPP = ROOT / "cpp" / "src"
#: Harness → sources of the runner that it is linked with.
HARNESSES = {
    "fuzz_data_file": ("data_file",),
    "fuzz_options": (
        *("data_file", "options", "deploy", "files", "result", "machine", "accuracy", "statistics", "runner"),
    ),
}
FLAGS = ["-std=c++17", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
#: An allocation of terabytes is refused by the allocator, as it is without the sanitizer.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0"}
LIMITED = {**ENVIRONMENT, "QUANTRIM_TIME_LIMIT": "20", "OMP_NUM_THREADS": "1"}
OPTIONS = ("--infer_model", "--infer-data", "--engine", "--batch_size", "--iterations", "--input_shape",
           "--json", "--profile", "--precision", "--streams=", "--num_threads", "--help", "--")  # fmt: skip
VALUES = ("", "m.onnx", "openvino", "-1", "0", "7", "9" * 30, "2147483647", "3,4,5", "3x4x5", ",,", "1e9",
          "f32", "true", "\xff\xfe", "a=b", "0x10", " 5", "\n", "../..", "\u00e4", "\ud83d")  # fmt: skip


def build(program: Path, harness: str = "fuzz_data_file", compiler: str = "g++") -> None:
    """Compile a harness with what it tries and both sanitizers."""
    sources = [HERE / f"{harness}.cpp", *(CPP / f"{name}.cpp" for name in HARNESSES[harness])]
    subprocess.run([compiler, *FLAGS, *map(str, sources), "-o", str(program)], check=True)


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


def command_line(rnd: random.Random) -> bytes:
    """Arguments that are right, wrong or no text at all, each with a zero byte behind it."""
    if rnd.random() < 0.2:
        return rnd.randbytes(rnd.randrange(200))
    words = [rnd.choice(OPTIONS if rnd.random() < 0.6 else VALUES) for _ in range(rnd.randrange(8))]
    data = "\0".join(words).encode("utf-8", "surrogatepass")
    if rnd.random() < 0.3:
        at = rnd.randrange(len(data) + 1)
        data = data[:at] + rnd.randbytes(rnd.randrange(9)) + data[at:]
    return data


CASES = {"fuzz_data_file": data_file, "fuzz_options": command_line}


def run(program: Path, files: int, seed: int, folder: Path, harness: str = "fuzz_data_file") -> str:
    """Count of what was read and refused; CalledProcessError where a sanitizer spoke.

    Raises:
        ValueError: the JSON of a result is none.
    """
    folder = folder / harness
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(files):
        paths.append(folder / f"{number}.bin")
        paths[-1].write_bytes(CASES[harness](random.Random(seed * 1_000_003 + number)))
    command = [str(program), *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    for path in folder.glob("*.json"):
        json.loads(path.read_bytes().decode("utf-8"))
    if left := list(folder.glob("*.part")):
        raise ValueError(f"left: {left[0].name}")
    return done.stdout.strip()


def run_models(program: Path, models: int, seed: int, folder: Path) -> Counter[str]:
    """Outcomes of damaged models on a runner with sanitizers, a process each.

    On ONNX Runtime: OpenVINO opens a library in a way (RTLD_DEEPBIND) that AddressSanitizer does not take.
    """
    from tests.fuzz.models import mutants

    found: Counter[str] = Counter()
    for name, data in mutants(models, seed):
        path = folder / "m.onnx"
        path.write_bytes(data)
        words = ["--infer_model", path, "--engine", "onnxruntime", "--batch_size", "1", "--iterations", "1",
                 "--input_shape", "3,16,16", "--json", folder / "r.json"]  # fmt: skip
        try:
            done = subprocess.run(
                [str(program), *map(str, words)], capture_output=True, timeout=60, env=LIMITED, check=False
            )
        except subprocess.TimeoutExpired:
            found["hang"] += 1
            continue
        text = done.stderr.decode("utf-8", "replace")
        outcome = {0: "ran", 1: "refused"}.get(done.returncode, f"code {done.returncode}")
        if "quantrim/cpp" in text or "/cpp/src/" in text or "runtime error" in text:
            outcome = f"sanitizer: {name}: {text[:400]}"
        found[outcome] += 1
        if done.returncode == 0:
            json.loads((folder / "r.json").read_bytes().decode("utf-8"))
    if list(folder.glob("*.part")):
        found["left"] += 1
    return found


def main() -> None:
    """Build and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--models", type=int, default=0)
    parser.add_argument("--runner", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for harness in HARNESSES if given.files else ():
            program = Path(name) / f"{harness}.out"
            build(program, harness)
            try:
                print(f"{harness}:", run(program, given.files, given.seed, Path(name), harness))
            except subprocess.CalledProcessError as error:
                sys.exit(error.stderr)
        if given.models and given.runner:
            found = run_models(given.runner, given.models, given.seed, Path(name))
            print("models:", ", ".join(f"{count} {outcome}" for outcome, count in found.most_common()))
            sys.exit(any(outcome not in ("ran", "refused") for outcome in found))


if __name__ == "__main__":
    main()
