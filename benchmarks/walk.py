"""The ten-minute walk: from the wheel in an empty environment to a verified INT8 file of an own model.

    python benchmarks/walk.py --folder build/walk                   # the example's model and images
    python benchmarks/walk.py --folder build/walk --model FP32.onnx --images PHOTOS --mean 0.5,0.5,0.5
    python benchmarks/walk.py --folder build/walk --train           # also what [train] brings, in MB

Every step is a command of the new environment, run where no clone is in sight; seconds are wall-clock. pip
takes packages from its index or its cache, as configured; the size is that of the environment's site-packages.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json

ROOT = Path(__file__).resolve().parents[1]
#: How often `import quantrim` is timed; the least counts, since the first one compiles.
IMPORTS = 5


class Walk:
    """Steps, timed, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder.resolve(), list[dict[str, object]]()
        self.folder.mkdir(parents=True)
        self.bin = self.folder / "env" / "bin"

    def step(self, what: str, command: str) -> str:
        """Run a command in the folder; its output. Stops with what it printed where it fails."""
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        environment.pop("PYTHONPATH", None)
        start = time.perf_counter()
        done = subprocess.run(
            shlex.split(command), cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{command}\n{done.stdout}{done.stderr}")
        self.steps.append({"step": what, "command": command, "seconds": round(seconds, 2)})
        print(f"{seconds:7.1f} s  {what}", flush=True)
        return done.stdout


def megabytes(folder: Path) -> float:
    """All files below a folder."""
    return (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
    )


def installed_megabytes(names: list[str]) -> tuple[float, list[str]]:
    """Size of packages in this environment by their files, and those that it lacks."""
    total, missing = 0.0, []
    for name in names:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        total += sum(path.stat().st_size for path in (file.locate() for file in files) if Path(path).is_file())
    return total / 1e6, missing


def resolved(pip: Path, what: str) -> list[str]:
    """Names of the packages that pip would install into an empty environment."""
    command = [pip, "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", what]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [one["metadata"]["name"] for one in report["install"]]


def walked(walk: Walk, options: argparse.Namespace) -> dict[str, object]:
    """All steps; what was measured besides their seconds."""
    isolation = "--no-build-isolation" if options.no_build_isolation else ""
    walk.bin.parent.mkdir()
    walk.step("build the wheel", f"{sys.executable} -m pip wheel -q --no-deps {isolation} -w . {ROOT}")
    (wheel,) = walk.folder.glob("*.whl")
    venv.create(walk.bin.parent, with_pip=True, clear=True)
    site = next(walk.bin.parent.glob("lib/python*/site-packages"))
    empty = megabytes(site)
    walk.step("pip install quantrim", f"pip install -q {wheel.name}")
    found: dict[str, object] = {"wheel_mb": wheel.stat().st_size / 1e6, "core_mb": megabytes(site) - empty}
    found["packages"] = len(list(site.glob("*.dist-info")))
    found["torch"] = (site / "torch").exists()
    timer = "import time; t = time.perf_counter(); import quantrim; print(time.perf_counter() - t)"
    found["import_s"] = min(float(_quietly(walk, f'python -c "{timer}"')) for _ in range(IMPORTS))
    walk.step("quantrim --version", "quantrim --version")
    model, images, prepared = "example/model.onnx", "example/images", ""
    walk.step("example: a model and images", "quantrim example --save-dir example")
    if options.model is not None:
        model, images = str(options.model.resolve()), str(options.images.resolve())
        prepared = f"--mean {options.mean} --std {options.std} --fit {options.fit}"
    ptq = f"quantrim ptq {model} --data {images} {prepared} -o int8.onnx --json int8.json"
    walk.step("ptq: calibrate, write, ask both engines", ptq)
    result = json.loads((walk.folder / "int8.json").read_text())
    found |= {key: result[key] for key in ("faithful", "size_mb")}
    found["headlines"] = [one["headline"] for one in result["engines"] if "headline" in one]
    walk.step("inspect the file", "quantrim inspect int8.onnx")
    if options.model is None:
        walk.step("infer on images", f"quantrim infer int8.onnx {images} --config example/deploy.yaml")
    walk.step("report", "quantrim report int8.json -o report.html")
    return found


def _quietly(walk: Walk, command: str) -> str:
    output = walk.step("import quantrim", command)
    walk.steps.pop()
    return output


def table(walk: Walk, found: dict[str, object]) -> Iterator[str]:
    """Markdown."""
    yield "| step | seconds |"
    yield "|---|---:|"
    for one in walk.steps:
        yield f"| {one['step']} | {one['seconds']} |"
    seconds = sum(float(str(one["seconds"])) for one in walk.steps[1:])
    yield f"| **all, without building the wheel** | **{seconds:.0f}** |"
    yield ""
    yield from (f"- {name}: {value}" for name, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="must not exist yet")
    parser.add_argument("--model", type=Path, help="an .onnx file of your own")
    parser.add_argument("--images", type=Path, help="its images")
    parser.add_argument("--mean", default="0.485,0.456,0.406")
    parser.add_argument("--std", default="0.229,0.224,0.225")
    parser.add_argument("--fit", default="crop")
    parser.add_argument("--train", action="store_true", help="sum up the packages of quantrim[train], too")
    parser.add_argument(
        "--no-build-isolation", action="store_true", help="build with this environment's setuptools"
    )
    options = parser.parse_args()
    if (options.model is None) != (options.images is None):
        parser.error("give --model and --images together")
    walk = Walk(options.folder)
    found = walked(walk, options)
    if options.train:
        wheel = next(walk.folder.glob("*.whl"))
        names = resolved(walk.bin / "pip", f"{wheel}[train]")
        found["train_mb"], found["train_not_counted"] = installed_megabytes(names)
        found["train_packages"] = len(names)
        found["train_measured_in"] = sysconfig.get_path("purelib").rsplit("/", 2)[-2]
    write_json(
        walk.folder / "walk.json", {"steps": walk.steps, **found, "machine": describe_machine().to_json()}
    )
    print(describe_machine().line())
    print("\n".join(table(walk, found)))


if __name__ == "__main__":
    main()
