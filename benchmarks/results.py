"""The tables of seeds 000, 001 and 002, measured here: writes docs/results.md.

    python benchmarks/results.py                            # all rows that are not there yet (many hours)
    python benchmarks/results.py --only 'speed/mobilenet*' 'latency/*/512x512/*'
    python benchmarks/results.py --list                     # ids of all rows, x before those that are there
    python benchmarks/results.py --only 'speed/vgg16/*' --again

Every row is kept in build/results/rows/ID.json as soon as it is measured, so the command can be stopped and
started again; interrupted training goes on from its last checkpoint. A row that fails is printed and left out,
and the command ends with code 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from results_accuracy import CLASSIFIERS, Plan, classifier_accuracy, pretrained_agreement, segmentation_accuracy
from results_page import page
from results_speed import (
    ENGINES,
    PRUNED,
    SEGMENTATION,
    SIZES,
    Effort,
    all_threads,
    classifier_speed,
    pruned_latency,
    segmentation_latency,
    thread_counts,
)

from quantrim.engines.machine import describe_machine
from quantrim.errors import QuantrimError
from quantrim.files import read_json, write_json, write_text

Job = Callable[[], dict[str, Any]]


def jobs(plan: Plan, effort: Effort, batch_size: int) -> dict[str, Job]:
    """Every row by its id, cheap tables first."""
    found: dict[str, Job] = {"agreement/efficientnet_lite0": partial(pretrained_agreement, plan)}
    for name in CLASSIFIERS:
        for engine in ENGINES:
            for count in thread_counts():
                job = partial(classifier_speed, name, engine, count, batch_size, effort)
                found[f"speed/{name}/{engine}/{count}"] = job
    for size in SIZES:
        for name in SEGMENTATION:
            for engine in ENGINES:
                job = partial(segmentation_latency, name, size, engine, all_threads(), effort)
                found[f"latency/{name}/{size}/{engine}/{all_threads()}"] = job
    for name in PRUNED:
        job = partial(pruned_latency, name, "512x512", "openvino", all_threads(), effort)
        found[f"pruned/{name}/512x512/openvino/{all_threads()}"] = job
    for name in CLASSIFIERS:
        found[f"accuracy/{name}"] = partial(classifier_accuracy, name, plan)
    for name in SEGMENTATION:
        found[f"miou/{name}"] = partial(segmentation_accuracy, name, plan)
    return found


def row_path(folder: Path, name: str) -> Path:
    """File of a row."""
    return folder / "rows" / f"{name}.json"


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows that were measured, those of other thread counts included."""
    root = folder / "rows"
    return {
        path.relative_to(root).with_suffix("").as_posix(): read_json(path)
        for path in sorted(root.rglob("*.json"))
    }


def measure(name: str, job: Job, folder: Path) -> bool:
    """Run a row and keep it; False, with its reason on stderr, where it fails."""
    start = time.perf_counter()
    print(f"{name} ...", flush=True)
    try:
        row = job()
    except (QuantrimError, RuntimeError, OSError) as error:  # the other rows are still worth having
        print(f"{name}: failed: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        return False
    seconds = time.perf_counter() - start
    write_json(row_path(folder, name), {**row, "machine": describe_machine().line(), "seconds": seconds})
    print(f"{name}: {seconds:.0f} s", flush=True)
    return True


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="ids of the rows to measure")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--list", action="store_true", help="print the ids and stop")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--folder", type=Path, default=Path("build/results"), help="rows, weights and files")
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--batch-size", type=int, default=1, help="of table II")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timed runs for a comparison")
    parser.add_argument("--runs", type=int, default=50, help="timed runs at most")
    parser.add_argument("--train-iters", type=int, default=600)
    parser.add_argument("--qat-iters", type=int, default=100)
    parser.add_argument("--images", type=int, default=10_000, help="validation pictures at most")
    parser.add_argument("--disc-size", type=int, default=128, help="side of the optic-disc pictures")
    parser.add_argument("--device", default="auto", help="of training: auto, cpu or cuda")
    return parser.parse_args(words)


def main() -> int:
    """Measure, write the page; 0 where every chosen row is there."""
    options = parsed()
    logging.disable(logging.WARNING)
    folder: Path = options.folder
    plan = Plan(folder / "accuracy", options.train_iters, options.qat_iters, options.images, options.disc_size,
                options.device)  # fmt: skip
    effort = Effort(options.budget, options.runs, folder / "models")
    wanted = jobs(plan, effort, options.batch_size)
    if options.list:
        print("\n".join(f"{'x' if row_path(folder, name).exists() else ' '} {name}" for name in wanted))
        return 0
    chosen = {name: job for name, job in wanted.items() if any(fnmatch.fnmatch(name, g) for g in options.only)}
    if not chosen:
        print(f"results.py: no row matches {' '.join(options.only)}; --list shows them.", file=sys.stderr)
        return 2
    failed = []
    for name, job in chosen.items():
        due = not options.page_only and (options.again or not row_path(folder, name).exists())
        if due and not measure(name, job, folder):
            failed.append(name)
    rows = stored(folder)
    write_text(options.output, page(rows, [name for name in wanted if name not in rows]))
    print(f"{options.output}: {len(rows)} rows")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
