"""Thirty architectures: our tuned files beside FP32, BF16, NNCF and ONNX Runtime's quantizer.

    python benchmarks/rewrites.py [--engine openvino] [--threads 1] [--whole] [--models fastscnn ...]
        [--seconds 500] [--tune-seconds 40]    # goes on where it stopped, in random order
    python benchmarks/rewrites.py --table      # what build/rewrites/rows.jsonl holds

Segmentation models take 512x512 images and give logits of 19 classes. All files of a model run in turns, each
round in random order. One thread is timed by the processor time of the process, which other work on the machine
hardly disturbs; several threads by the clock. ``--whole`` times from a uint8 image to the answer: a caller's
numpy normalises, transposes and takes the arg max around the other files, and ours hold all of that.
"rewritten FP32" is the tuned graph without any INT8: what it gains over FP32 is layout, and what the tuned file
gains over it is INT8 (and BF16).
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from ptq_latency import QUANTIZERS
from results_speed import SEGMENTATION, segmentation_file
from rewrites_table import tables
from zoo import CLASSIFIERS, DETECTORS, OTHERS, SIZES, model_file

from quantrim.engines import Precision, Session, open_session
from quantrim.engines.machine import describe_machine
from quantrim.graph import normalize, read_onnx
from quantrim.graph.feeds import IMAGENET
from quantrim.graph.session import save_model
from quantrim.post_training import PtqConfig
from quantrim.post_training.ptq import write_form
from quantrim.post_training.tuning import Choice, choose_form
from quantrim.rewrites import Memory, Tuned, give_answer, take_images
from quantrim.rewrites.duel import clock_for

FOLDER = Path("build/rewrites")
ROWS = FOLDER / "rows.jsonl"
MODELS = (
    *CLASSIFIERS, *SEGMENTATION, *DETECTORS,
    "mobilenet_v3_small", "mobilenet_v3_large", "mobilenetv4_conv_small", "efficientnet_b0", "shufflenet_v2",
    "regnet_x_400mf", "mobileone_s0", "densenet121", "resnext50", "convnext_tiny", "vit_b_16", "swin_t",
    "mobilevit_s",
)  # fmt: skip
#: Seconds that the timed turns of one model take, about; turns at least and at most.
_TURNS_SECONDS, _FEWEST, _MOST = 15.0, 5, 25
_SAMPLES = 4


@dataclass(frozen=True)
class Task:
    """One model in one setting.

    Attributes:
        name: of the model.
        engine: where.
        threads: on how many.
        whole: from a uint8 image to the answer.
    """

    name: str
    engine: str
    threads: int
    whole: bool

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return FOLDER / self.name

    @property
    def answers(self) -> bool:
        """Whether the first output are logits of which a caller takes the largest."""
        return self.name not in DETECTORS

    def source(self) -> tuple[Path, tuple[int, ...]]:
        """FP32 file, and the shape of an image (channels, height, width)."""
        if self.name in SEGMENTATION:
            return segmentation_file(self.name, "512x512", Path("build/models")), (3, 512, 512)
        size = SIZES.get(self.name, 224)
        return model_file(self.name), (3, size, size)


def measure(task: Task, seconds: float) -> dict[str, Any]:
    """Median milliseconds by file, and what tuning kept."""
    source, shape = task.source()
    task.folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (_SAMPLES, *shape[1:], shape[0]), np.uint8)
    images = np.concatenate([normalized(one) for one in pixels])
    files: dict[str, tuple[Path, Precision | None]] = {"FP32": (source, "f32")}
    if task.engine == "openvino":
        files["BF16"] = (source, "bf16")
    made, failed = peers(task, source, images)
    files |= {title: (path, "f32") for title, path in made.items()}
    start = time.perf_counter()
    ours, form = our_files(task, source, pixels, images, seconds)
    taken = time.perf_counter() - start
    files |= ours
    sessions = {
        title: open_session(path, task.engine, threads=task.threads, precision=precision)
        for title, (path, precision) in files.items()
    }
    own = {title for title in ours if task.whole}
    calls = {title: call_of(task, session, pixels[:1], title in own) for title, session in sessions.items()}
    return {
        "times": in_turns(calls, task.threads),
        "kept": [trial.to_json() for trial in form.rewrites.kept],
        "winner": form.winner,
        "failed": failed,
        "tuning_seconds": round(taken, 1),
    }


def normalized(image: np.ndarray) -> np.ndarray:
    """What a caller's numpy makes of uint8 (H, W, C): float32 (1, C, H, W)."""
    mean, std = np.float32(IMAGENET.mean), np.float32(IMAGENET.std)
    prepared = (image.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(prepared.transpose(2, 0, 1)[None])


def call_of(task: Task, session: Session, image: np.ndarray, own: bool) -> Callable[[], object]:
    """What is timed: the run alone, or from the image to the answer."""
    name, output = session.inputs[0].name, session.outputs[0].name
    if own:
        return lambda: session.run({name: image})[output]
    if not task.whole:
        feed = {name: normalized(image[0])}
        return lambda: session.run(feed)

    def whole() -> object:
        answer = session.run({name: normalized(image[0])})[output]
        return answer.argmax(axis=1) if task.answers else answer

    return whole


def our_files(
    task: Task, source: Path, pixels: np.ndarray, images: np.ndarray, seconds: float
) -> tuple[dict[str, tuple[Path, Precision | None]], Choice]:
    """Whole INT8 without tuning, the tuned file, and the tuned graph in FP32."""
    config = PtqConfig(
        target=task.engine, refinements=(), threads=task.threads, tune_seconds=seconds,
        engines=(task.engine,),
    )  # fmt: skip
    model, samples = normalize(read_onnx(source)), images
    if task.whole:
        model, samples = image_to_answer(model, task.answers), pixels
    name = str(model.graph.inputs[0].name)
    feeds = [{name: sample[None]} for sample in samples]
    paths = {title: task.folder / f"{task.engine}_{title.replace(' ', '_')}.onnx" for title in OURS}
    write_form(Choice(model, Tuned(model)), feeds, feeds, config, paths["INT8"])
    form = choose_form(model, feeds, config, task.folder, memory=Memory(FOLDER / "tuning.json"))
    write_form(form, feeds, feeds, config, paths["tuned"])
    save_model(form.model, paths["rewritten FP32"])
    for draft in task.folder.glob("draft_*.onnx"):
        draft.unlink()
    return {title: (path, "f32" if title == "rewritten FP32" else None) for title, path in paths.items()}, form


OURS = ("INT8", "rewritten FP32", "tuned")


def image_to_answer(model: ir.Model, answers: bool) -> ir.Model:
    """The model with a uint8 image as input, and the classes as output where it gives logits."""
    model = take_images(model, IMAGENET.mean, IMAGENET.std)
    return normalize(give_answer(model, "classes") if answers else model)


def peers(task: Task, source: Path, images: np.ndarray) -> tuple[dict[str, Path], dict[str, str]]:
    """Files of other quantizers, made once for all settings; and why one could not be made."""
    made, failed = {}, {}
    for title, key in (("NNCF", "nncf"), ("ORT quantizer", "ort")):
        quantize = QUANTIZERS[task.engine][key]
        kept = task.folder / f"{quantize.__name__}.txt"
        if not kept.exists():
            folder = task.folder / quantize.__name__
            folder.mkdir(exist_ok=True)
            try:
                kept.write_text(str(quantize(source, folder, images)))
            except Exception as error:  # a peer's failure is a row of the table
                kept.write_text("failed: " + " ".join(str(error).split())[:120])
        told = kept.read_text()
        if told.startswith("failed: "):
            failed[title] = told.removeprefix("failed: ")
        else:
            made[title] = Path(told)
    return made, failed


def in_turns(calls: Mapping[str, Callable[[], object]], threads: int) -> dict[str, float]:
    """Median milliseconds of each call."""
    clock, order, generator = clock_for(threads), list(calls), random.Random(0)
    times = defaultdict(list)
    begun = time.perf_counter()
    turn = -2
    while turn < _MOST and (turn < _FEWEST or time.perf_counter() - begun < _TURNS_SECONDS):
        generator.shuffle(order)
        for title in order:
            start = clock()
            calls[title]()
            if turn >= 0:
                times[title].append((clock() - start) * 1e3)
        turn += 1
    return {title: float(np.median(times[title])) for title in calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*SEGMENTATION, *CLASSIFIERS, *OTHERS, *DETECTORS]
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=known, metavar="MODEL")
    parser.add_argument("--engine", default="openvino", choices=list(QUANTIZERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="from a uint8 image to the answer")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further model after so many")
    parser.add_argument("--tune-seconds", type=float, default=40.0)
    parser.add_argument("--again", action="store_true", help="measure what has been measured before, too")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.table:
        print(tables(read_rows()))
        return
    begun = time.perf_counter()
    machine = describe_machine().line()
    tasks = [Task(name, arguments.engine, arguments.threads, arguments.whole) for name in arguments.models]
    random.Random().shuffle(tasks)
    for task in tasks:
        done = set() if arguments.again else {row_key(row) for row in read_rows()}
        row: dict[str, Any] = {"machine": machine, **vars(task), "segmentation": task.name in SEGMENTATION}
        if row_key(row) in done or time.perf_counter() - begun > arguments.seconds:
            continue
        start = time.perf_counter()
        row |= measure(task, arguments.tune_seconds) | {"seconds": round(time.perf_counter() - start, 1)}
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = ", ".join(f"{title} {ms:.2f}" for title, ms in row["times"].items())
        print(f"{task.name}: {shown}; {row['winner']}; {row['seconds']:.0f} s", flush=True)


def read_rows() -> list[dict[str, Any]]:
    """The newest row of each task."""
    if not ROWS.exists():
        return []
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    return list({row_key(row): row for row in rows}.values())


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("name", "engine", "threads", "whole", "machine"))


if __name__ == "__main__":
    main()
