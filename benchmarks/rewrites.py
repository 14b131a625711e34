"""Tuned files beside FP32, BF16, NNCF's and ONNX Runtime's quantizer, and what each rewrite brings.

    python benchmarks/rewrites.py [--engine openvino] [--models fastscnn mobilenet_v2 ...] [--threads 1]
        [--rounds 25] [--tune-seconds 60] [--json FILE]

Segmentation models take 512x512 images and give logits of 19 classes. All files of a model run in turns, each
round in random order. One thread is timed by the processor time of the process, which other work on the machine
hardly disturbs; several threads by the clock. "rewritten FP32" is the tuned graph without any INT8: what it
gains over FP32 is layout, and what the tuned file gains over it is INT8 (and BF16).
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ptq_latency import QUANTIZERS, Images
from results_speed import SEGMENTATION, segmentation_file
from zoo import CLASSIFIERS, OTHERS, SIZES, model_file

from quantrim.engines import Precision, Session, open_session, random_inputs
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.graph import normalize, read_onnx
from quantrim.graph.normalize import random_feed
from quantrim.graph.session import save_model
from quantrim.post_training import PtqConfig, ptq
from quantrim.post_training.tuning import Choice, choose_form
from quantrim.rewrites import Memory, default_path
from quantrim.rewrites.duel import clock_for

MODELS = ("fastscnn", "bisenetv2", "hardnet", "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2",
          "efficientnet_b0", "regnet_x_400mf")  # fmt: skip
PEERS = ("FP32", "BF16", "NNCF", "ORT quantizer")


@dataclass(frozen=True)
class Row:
    """Median milliseconds by file, and the rewrites that were kept: name → time with it over time without."""

    times: Mapping[str, float]
    rewrites: Mapping[str, float]
    winner: str

    def best_peer(self) -> float:
        """Milliseconds of the fastest that others offer."""
        return min(self.times[name] for name in PEERS if name in self.times)


def source_of(name: str) -> tuple[Path, tuple[int, ...]]:
    if name in SEGMENTATION:
        return segmentation_file(name, "512x512", Path("build/models")), (3, 512, 512)
    size = SIZES.get(name, 224)
    return model_file(name), (3, size, size)


def measure(name: str, engine: str, threads: int, rounds: int, seconds: float) -> Row:
    source, shape = source_of(name)
    images = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        files: dict[str, tuple[Path, Precision | None]] = {"FP32": (source, "f32")}
        if engine == "openvino":
            files["BF16"] = (source, "bf16")
        files |= {title: (path, "f32") for title, path in peers(name, engine, source, folder, images).items()}
        settings = {"target": engine, "refinements": (), "threads": threads, "batch_size": 1}
        int8 = ptq(source, images, folder / "int8.onnx", engines=(), **settings)
        files["INT8"] = (Path(int8.output), None)
        config = PtqConfig(engines=(engine,), tune_seconds=seconds, **settings)
        form = tuned_form(source, config, folder)
        tuned = ptq(source, images, folder / "tuned.onnx", config=config, memory=Memory(default_path()))
        files["tuned"] = (Path(tuned.output), None)  # random weights may make it an unfaithful one
        save_model(form.model, folder / "rewritten.onnx")
        files["rewritten FP32"] = (folder / "rewritten.onnx", "f32")
        sessions = {
            title: open_session(path, engine, threads=threads, precision=precision)
            for title, (path, precision) in files.items()
        }
        times = in_turns(sessions, rounds, threads)
    return Row(times, {trial.rewrite: trial.ratio for trial in form.rewrites.kept}, form.winner)


def tuned_form(source: Path, config: PtqConfig, folder: Path) -> Choice:
    """What tuning chooses; its answers are remembered, so that ``ptq`` behind it races nothing again."""
    model = normalize(read_onnx(source))
    return choose_form(model, [random_feed(model)], config, folder, memory=Memory(default_path()))


def peers(name: str, engine: str, source: Path, folder: Path, images: Images) -> dict[str, Path]:
    made = {}
    for title, key in (("NNCF", "nncf"), ("ORT quantizer", "ort")):
        try:
            made[title] = QUANTIZERS[engine][key](source, folder, images)
        except Exception as error:  # a peer's failure is a row of the table
            print(f"  {title} failed on {name}: {str(error).splitlines()[0][:100]}")
    return made


def in_turns(sessions: Mapping[str, Session], rounds: int, threads: int) -> dict[str, float]:
    """Median milliseconds of each session."""
    clock, order, generator = clock_for(threads), list(sessions), random.Random(0)
    first = random_inputs(next(iter(sessions.values())))
    feeds = {
        title: dict(zip((port.name for port in session.inputs), first.values(), strict=True))
        for title, session in sessions.items()
    }
    times = defaultdict(list)
    for turn in range(-3, rounds):
        generator.shuffle(order)
        for title in order:
            start = clock()
            sessions[title].run(feeds[title])
            if turn >= 0:
                times[title].append((clock() - start) * 1e3)
    return {title: float(np.median(times[title])) for title in sessions}


def geomean(values: list[float]) -> float:
    return math.exp(float(np.mean(np.log(values))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*SEGMENTATION, *CLASSIFIERS, *OTHERS]
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=known, metavar="MODEL")
    parser.add_argument("--engine", default="openvino", choices=list(QUANTIZERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tune-seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    machine = describe_machine()
    print(f"{machine.line()}; {arguments.engine}, {arguments.threads} thread(s), batch 1, median ms")
    titles = ("FP32", "BF16", "NNCF", "ORT quantizer", "INT8", "rewritten FP32", "tuned")
    print(
        f"{'model':20}"
        + "".join(f"{title:>15}" for title in titles)
        + f"{'tuned/best':>12}  fastest in; rewrites"
    )
    rows: dict[str, Row] = {}
    names = list(arguments.models)
    random.Random().shuffle(names)
    for name in names:
        row = measure(name, arguments.engine, arguments.threads, arguments.rounds, arguments.tune_seconds)
        rows[name] = row
        cells = "".join(f"{row.times[title]:15.2f}" if title in row.times else f"{'-':>15}" for title in titles)
        kept = ", ".join(f"{rewrite} {ratio:.2f}x" for rewrite, ratio in row.rewrites.items()) or "none"
        print(f"{name:20}{cells}{row.times['tuned'] / row.best_peer():12.2f}  {row.winner}; {kept}", flush=True)
    summary("tuned over the best peer", {n: r.times["tuned"] / r.best_peer() for n, r in rows.items()})
    if arguments.engine == "openvino":
        summary("tuned over BF16", {n: r.times["tuned"] / r.times["BF16"] for n, r in rows.items()})
    summary(
        "rewritten FP32 over FP32", {n: r.times["rewritten FP32"] / r.times["FP32"] for n, r in rows.items()}
    )
    if arguments.json:
        content = {name: {"times": dict(r.times), "rewrites": dict(r.rewrites)} for name, r in rows.items()}
        write_json(arguments.json, {"machine": machine.to_json(), "rows": content})


def summary(title: str, ratios: Mapping[str, float]) -> None:
    groups = {"all": list(ratios.values()), "segmentation": [r for n, r in ratios.items() if n in SEGMENTATION]}
    found = ", ".join(f"{name} {geomean(values):.2f}" for name, values in groups.items() if values)
    print(f"geomean, {title}: {found}; worst {max(ratios.values()):.2f}")


if __name__ == "__main__":
    main()
