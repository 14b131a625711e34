"""Verbs that are asked to stop, and disks that are full: one line, nothing half-written, nothing left.

    python -m tests.fuzz.stops [--terms 60] [--full 60] [--seed 0]

Each case runs a verb of :mod:`tests.fuzz.kills` and sends SIGTERM (or SIGINT, SIGHUP) at a random time, or lets
no file grow beyond a random size, as a full disk does. Right is an exit code of 128 + the signal with one line,
or of 1 with one line; or 0 where the verb was done before. Every file in the folder is whole: none ends at the
limit.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.fuzz.kills import Job, ended, jobs, left_over, material, start, still_the_clock

SIGNALS = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def told(here: Path) -> list[str]:
    """Lines in which a verb said why it ended, and tracebacks."""
    lines = here.with_suffix(".log").read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("quantrim: ", "Traceback"))]


def stopped(job: Job, here: Path, took: float, rnd: random.Random) -> str:
    """What became of a verb that got a signal."""
    number = rnd.choice(SIGNALS)
    code = ended(start(job.words(here), here), rnd.random() * took, number)
    if code == 0:
        return "done before"
    if code not in (128 + number, -number):  # -n: the signal came before the handler stood
        return f"code {code} after {number.name}: {told(here)[-1:]}"
    if code > 0 and (len(told(here)) != 1 or "Traceback" in told(here)[0]):
        return f"says {told(here)}"
    left = [one for one in left_over(here) if not one.endswith(".resume")]  # what a next run goes on with
    return f"left {left}" if left else "stopped"


def full(job: Job, here: Path, sizes: list[int], rnd: random.Random) -> str:
    """What became of a verb whose files may not grow beyond a size."""
    limit = rnd.randrange(1, 2 + rnd.choice(sizes))
    code = ended(
        start(job.words(here), here, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
    )
    half = [path.name for path in here.rglob("*") if path.is_file() and path.stat().st_size == limit]
    if half:
        return f"half-written {half[:3]} at {limit} bytes"
    if code == 0:
        return "large enough"
    if code != 1 or len(told(here)) != 1 or "Traceback" in told(here)[0]:
        return f"code {code} at {limit} bytes: {told(here)[-2:]}"
    return f"left {left}" if (left := left_over(here)) else "refused"


def counted(job: Job, folder: Path, case: Callable[[Job, Path], str], count: int) -> Counter[str]:
    """Outcomes of so many cases, each in a folder of its own."""
    found: Counter[str] = Counter()
    for number in range(count):
        here = folder / f"case{number}"
        here.mkdir(parents=True)
        found[case(job, here)] += 1
        shutil.rmtree(here)
        shutil.rmtree(here.with_suffix(".tmp"), ignore_errors=True)
    return found


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("terms", "full"):
        parser.add_argument(f"--{name}", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    still_the_clock()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="stops-") as name:
        all_jobs = jobs(material(Path(name)))
        names = [one for one in given.verbs.split(",") if one] or [one for one in all_jobs if one != "report"]
        for place, verb in enumerate(names):
            job, rnd = all_jobs[verb], random.Random(f"{verb} {given.seed}")
            whole = Path(name) / verb.replace(" ", "-") / "whole"
            whole.mkdir(parents=True)
            begin = time.monotonic()
            ended(start(job.words(whole), whole))
            took = time.monotonic() - begin
            sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
            cases = {
                "terms": lambda job, here, rnd=rnd, took=took: stopped(job, here, took, rnd),
                "full": lambda job, here, rnd=rnd, sizes=sizes: full(job, here, sizes, rnd),
            }
            for kind, case in cases.items():
                total = getattr(given, kind)
                share = total * (place + 1) // len(names) - total * place // len(names)
                counts = counted(job, whole.parent / kind, case, share)
                wrong += sum(n for found, n in counts.items() if found not in RIGHT)
                print(f"{verb}, {kind}:", ", ".join(f"{n} {found}" for found, n in counts.items()), flush=True)
    print(f"{wrong} wrong")
    return int(wrong > 0)


RIGHT = frozenset({"done before", "stopped", "large enough", "refused"})


if __name__ == "__main__":
    sys.exit(main())
