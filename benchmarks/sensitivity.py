"""What measuring sensitivity costs: ours beside the usual nine rebuilt models for each group.

    python benchmarks/sensitivity.py -c configs/quick_start/bisenet_synthetic_disc_256x256.yml --weights FILE

The usual procedure (PaddleSlim's) is run by the same code without the shortcuts: every group is pruned for real
at 0.1 ... 0.9, its batch norm statistics are measured anew, and each model is evaluated by its metric on the
whole validation set. Printed: evaluations,
seconds on one worker, and Spearman's rank correlation between the two orders of the groups, at a half of the
channels and over all ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.pruning import Job, Probe, measure, recalibrate_batch_norm, score, survey
from quantrim.pruning.surgery import remove
from quantrim.recipes.loading import load
from quantrim.recipes.probes import probe_of
from quantrim.recipes.runs import best_key, validation
from quantrim.vision.config import load_config

RATIOS = tuple(round(0.1 * step, 1) for step in range(1, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the configuration"
    )
    parser.add_argument("--cache", type=Path, required=True, help="JSON file of the slow procedure's progress")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    model, key = load(config, arguments.weights).model, best_key(config)
    probe: Probe = probe_of(config, arguments.samples)
    looked = survey(model, probe.batches[0][0][:1])
    scores = score(model, looked.graph.groups, "l1")
    job = Job(model, looked.graph.groups, scores, probe, recalibrate=True)
    start = time.perf_counter()
    ours = measure(job)
    print(f"quantrim: {ours.evaluations} evaluations of {probe.samples} samples, "
          f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip

    judge = validation(config)
    done = json.loads(arguments.cache.read_text()) if arguments.cache.exists() else {}
    if "before" not in done:
        done |= {"before": judge(model)[key], "seconds": 0.0, "drops": {}}
    for group in job.groups:
        for ratio in RATIOS:
            name = f"{group.name}/{ratio}"
            if name in done["drops"]:
                continue
            start = time.perf_counter()
            pruned = copy.deepcopy(model)
            count = min(group.units - 1, round(ratio * group.units))
            remove(pruned, group.removal(np.argsort(scores[group.name], kind="stable")[:count]))
            recalibrate_batch_norm(pruned, (images for images, _ in probe.batches))
            done["drops"][name] = done["before"] - judge(pruned)[key]
            done["seconds"] += time.perf_counter() - start
        write_json(arguments.cache, done)
    print(f"nine ratios, rebuilt: {len(done['drops']) + 1} evaluations of the validation set, "
          f"{done['seconds']:.0f} s")  # fmt: skip
    names = [group.name for group in job.groups]
    at_half = [ours.loss(name, np.array([0.5]))[0] for name in names]
    over_all = [ours.loss(name, np.array(RATIOS)).mean() for name in names]
    drops = np.array([[done["drops"][f"{name}/{ratio}"] for ratio in RATIOS] for name in names])
    print(f"{len(names)} groups; Spearman's rank correlation of our loss and the {key} lost: "
          f"{spearmanr(at_half, drops[:, 4]).statistic:.2f} at 0.5, "
          f"{spearmanr(over_all, drops.mean(1)).statistic:.2f} over all ratios")  # fmt: skip
    print(describe_machine().to_json())


if __name__ == "__main__":
    main()
