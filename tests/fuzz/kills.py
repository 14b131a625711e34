"""The campaign of kills: long verbs end by SIGKILL at random places, are started again, and must end the same.

    python -m tests.fuzz.kills [--kills 120] [--seed 0] [--verbs train,qat,...]

Each case runs the verb in a forked process of its own that is killed at a random time, or right before or
behind the n-th file that it puts in place; once or several times in a row. The last run lives. What it wrote
is compared with a run that was never killed, and nothing of the killed ones may be left. Only the clock is
stilled: latencies that choose between files are fixed, everything else is computed. The exit code is 1 where a
result differs.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import quantrim.journal
from quantrim.cli import main as main_of_cli
from quantrim.graph.from_torch import export_onnx
from quantrim.recipes.loading import load
from quantrim.vision.config import load_config

LIMIT_S = 300.0
_LONG_AGO = 7200
Words = list[str]


@dataclass(frozen=True)
class Job:
    """A verb that takes long.

    Attributes:
        words: its command line for a folder; after a kill, what a user would type then.
        result: what the folder holds at the end, in a form that can be compared.
    """

    words: Callable[[Path], Words]
    result: Callable[[Path], Any]


def material(folder: Path) -> Path:
    """Configuration, images, weights and models, as small as can be."""
    generator = np.random.default_rng(0)
    for name, count in (("train", 48), ("t10k", 16)):
        labels = generator.integers(0, 10, count)
        images = generator.integers(0, 60, (count, 16, 16)) + 19 * labels[:, None, None]
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            data = gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(data)
    data = {
        "type": "FashionMNIST",
        "dataset_root": str(folder),
        "transforms": [{"type": "Normalize", "mean": [0.5], "std": [0.3]}],
    }
    config = {
        "batch_size": 8,
        "iters": 8,
        "train_dataset": data,
        "val_dataset": data,
        "optimizer": {"type": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.05},
        "model": {"type": "MobileNetV1", "scale": 0.25, "in_channels": 1, "small_input": True},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    loaded = load(load_config(folder / "config.yml"), None)
    torch.save(loaded.model.state_dict(), folder / "fp32.pth")
    export_onnx(loaded.model.eval(), torch.randn(1, 1, 16, 16), folder / "net.onnx")
    np.save(folder / "images.npy", generator.standard_normal((40, 1, 16, 16)).astype(np.float32))
    return folder


def _resumed(option: Words, found: str) -> Callable[[Path], Words]:
    return lambda folder: [word.format(folder) for word in option] if any(folder.glob(found)) else []


def _tensors(pattern: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.glob(pattern)):
            for name, value in torch.load(path, weights_only=True).items():
                found[f"{path.name} {name}"] = hashlib.sha256(value.numpy().tobytes()).hexdigest()
        return found

    return read


def _bytes(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def _arrays(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        with np.load(folder / name) as stored:
            return {key: stored[key].tolist() for key in stored}

    return read


def _candidates(folder: Path) -> Any:
    """What was chosen among what, and the file."""
    value = json.loads((folder / "result.json").read_text())
    keys = ("name", "points", "drop", "float_layers")
    return (
        value["chosen"],
        [[one[key] for key in keys] for one in value["candidates"]],
        _bytes("o.onnx")(folder),
    )


def _page(folder: Path) -> str:
    return (folder / "page.html").read_text(encoding="utf-8")


def jobs(given: Path) -> dict[str, Job]:
    """The long verbs by name."""
    config = ["-c", str(given / "config.yml")]
    weights = ["--weights", str(given / "fp32.pth")]
    model, images = str(given / "net.onnx"), ["--data", str(given / "images.npy")]
    often = ["--save-interval", "2"]
    resume = _resumed(["--resume", "{}"], "iter_*/state.pth")
    plan = _resumed(["--resume"], "plan.json")
    quiet = ["--engine", "onnxruntime"]

    def job(
        words: Words, result: Callable[[Path], Any], more: Callable[[Path], Words] = lambda folder: []
    ) -> Job:
        return Job(lambda folder: [word.replace("DIR", str(folder)) for word in words] + more(folder), result)

    into = ["--save-dir", "DIR"]
    tuned = [*config, *weights, *into, *often]
    pruned = ["--pruning-ratio", "0.3", "--samples", "16"]
    pruned += ["--retraining-iters", "6"]
    ptq = ["ptq", model, *images, "-o", "DIR/o.onnx", "--samples", "32", *quiet]
    compress = ["compress", model, *images, "-o", "DIR/o.onnx", "--samples", "20", "--images", "20", *quiet]
    return {
        "train": job(["train", *config, *into, *often], _tensors("iter_8/model.pth"), resume),
        "train ema": job(
            ["train", *config, *into, *often, "--ema-decay", "0.9"], _tensors("best_model/*.pth"), resume
        ),
        "qat": job(["qat", *tuned, "--samples", "16"], _bytes("model_int8.onnx"), resume),
        "prune": job(["prune", *tuned, *pruned, *quiet], _tensors("model.pth"), plan),
        "ptq": job([*ptq, "--refine", "bias"], _bytes("o.onnx", "o.ranges.json")),
        "ptq adaround": job([*ptq, "--refine", "adaround,bias"], _bytes("o.onnx", "o.ranges.json")),
        "calibrate": job(["calibrate", model, *images, "-o", "DIR/s.npz"], _arrays("s.npz")),
        "compress": job([*compress, "--max-drop", "0", "--json", "DIR/result.json"], _candidates),
        "export": job(["export", *config, *weights, "-o", "DIR/m.onnx"], _bytes("m.onnx")),
        "report": job(["report", str(given / "result.json"), "-o", "DIR/page.html"], _page),
    }


def still_the_clock() -> None:
    """Latencies that choose between files are fixed; every pass over data is saved at once."""
    for module in ("onnxruntime", "openvino", "torchvision", "quantrim.recipes.qat", "quantrim.recipes.prune"):
        importlib.import_module(module)  # once, for all forks
    search = importlib.import_module("quantrim.compression.compress")
    quantrim.journal.EVERY_S = 0.0

    def times(pairs: Sequence[Any], **settings: Any) -> np.ndarray:
        return np.arange(1.0, 1.0 + len(pairs))[:, None].repeat(settings["repeat"], 1)

    search.interleaved = times  # type: ignore[attr-defined]
    search._Search._gains = lambda self, variants, int8: (  # type: ignore[attr-defined]
        {name: 1.0 + place for place, name in enumerate(variants.layers)}, 100.0,
    )  # fmt: skip


def start(words: Words, folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Process id of a fork that runs the verb as the command line does.

    Args:
        words: the command line.
        folder: has the log and temporary folders beside it.
        prepare: called in the fork before.
    """
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()  # a kill takes the processes that the verb starts, too
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder.with_suffix(".tmp"))
        Path(tempfile.tempdir).mkdir(exist_ok=True)
        sys.argv = ["quantrim", *words]
        prepare()
        main_of_cli()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
    os._exit(70)


def _deadly(kill_at: int) -> None:
    """Let this process die at a file that it puts in place: 2n before the n-th one, 2n + 1 behind it."""
    count, replace = [0], os.replace

    def run(*args: Any, **kwargs: Any) -> None:
        for step in (lambda: None, lambda: replace(*args, **kwargs)):
            step()
            if count[0] == kill_at:
                os.killpg(0, signal.SIGKILL)
            count[0] += 1

    os.replace = run


def ended(child: int, kill_after: float | None = None, number: int = signal.SIGKILL) -> int | None:
    """Exit code of a child, below zero for a signal; it gets a signal after some seconds. None: it hung."""
    begin = time.monotonic()
    while time.monotonic() - begin < LIMIT_S:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if kill_after is not None and time.monotonic() - begin > kill_after:
            if number == signal.SIGKILL:
                _kill(child)
            else:
                os.kill(child, number)
            kill_after = None
        time.sleep(0.005)
    _kill(child)
    os.waitpid(child, 0)
    return None


def _kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
        os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)


def age(folder: Path) -> None:
    """Make everything that a killed run left look old, so that the next one may sweep it."""
    then = time.time() - _LONG_AGO
    for path in [
        *folder.rglob("*"),
        *folder.with_suffix(".tmp").rglob("*"),
        *folder.with_suffix(".tmp").glob("*"),
    ]:
        if path.name.startswith((".", "quantrim-")):
            os.utime(path, (then, then), follow_symlinks=False)


def left_over(folder: Path) -> list[str]:
    """Names of temporary files that are there after the end."""
    temporary = [path.name for path in folder.rglob(".*")]
    return temporary + [path.name for path in folder.with_suffix(".tmp").glob("quantrim-*")]


def kills(job: Job, folder: Path, expected: Any, took: float, count: int, rnd: random.Random) -> Iterator[str]:
    """What became of a job that was killed so often: an outcome for each kill."""
    done = case = 0
    while done < count:
        case += 1
        here = folder / f"case{case}"
        here.mkdir()
        wanted, got = min(count - done, rnd.choice([1, 1, 2, 3])), 0
        for _ in range(wanted):
            at = rnd.randrange(24) if rnd.random() < 0.5 else -1
            after = None if at >= 0 else rnd.random() * took
            code = ended(start(job.words(here), here, partial(_deadly, at)), after)
            got += code == -signal.SIGKILL
            if code is None:
                yield "hang"
            if code not in (0, -signal.SIGKILL):
                yield f"code {code}: {last_line(here)}"
            if code != -signal.SIGKILL:
                break
            age(here)
        done += got
        if got:
            found = _verdict(job, here, expected)
            yield from [found] + ["equal"] * (got - 1) if found == "equal" else [found]
        shutil.rmtree(here)
        shutil.rmtree(here.with_suffix(".tmp"), ignore_errors=True)
        if case > 10 * count:
            return


def _verdict(job: Job, here: Path, expected: Any) -> str:
    again = [*job.words(here)]
    code = ended(start(again, here))
    if code is None:
        return "hang"
    if code != 0:
        return f"code {code}: {last_line(here)}"
    if job.result(here) != expected:
        return "differs"
    left = left_over(here)
    return f"left: {', '.join(left[:4])}" if left else "equal"


def last_line(here: Path) -> str:
    """The end of what a run said."""
    lines = here.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    still_the_clock()
    wrong = total = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        all_jobs = jobs(material(Path(name)))
        names = [one for one in given.verbs.split(",") if one] or list(all_jobs)
        for place, verb in enumerate(names):
            share = given.kills * (place + 1) // len(names) - given.kills * place // len(names)
            counts = _counted(all_jobs[verb], Path(name) / verb.replace(" ", "-"), share, given.seed)
            total += sum(counts.values())
            wrong += sum(count for found, count in counts.items() if found != "equal")
            told = ", ".join(f"{count} {found}" for found, count in counts.items())
            print(f"{verb}: {told} of {sum(counts.values())} kills", flush=True)
    print(f"{total} kills, {wrong} wrong")
    return int(wrong > 0)


def _counted(job: Job, folder: Path, count: int, seed: int) -> Counter[str]:
    whole = folder / "whole"
    whole.mkdir(parents=True)
    begin = time.monotonic()
    if ended(start(job.words(whole), whole)) != 0:
        return Counter([f"fails without a kill: {last_line(whole)}"])
    took = time.monotonic() - begin
    if left := left_over(whole):
        return Counter([f"left without a kill: {left}"])
    if "compress" in job.words(whole)[0]:
        shutil.copyfile(whole / "result.json", folder.parent / "result.json")  # for the report
    return Counter(kills(job, folder, job.result(whole), took, count, random.Random(f"{folder.name} {seed}")))


if __name__ == "__main__":
    sys.exit(main())
