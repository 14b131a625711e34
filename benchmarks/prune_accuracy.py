r"""Accuracy after pruning and after retraining: quantrim's criteria beside Torch-Pruning's.

    python benchmarks/prune_accuracy.py -c CONFIG --weights FILE --cache out.json --iters 200 \
        --learning-rate 0.02

Every method starts from the same weights, removes the same share of FLOPs and is retrained by the same loop
with the same data, steps, rate and distillation from the unpruned model. Torch-Pruning's ratio is bisected
until its FLOPs match; batch norm statistics are measured anew for all.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quantrim.distillation import distillation_loss
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.pruning import Examples, Job, Probe, measure, prune, recalibrate_batch_norm, score, survey
from quantrim.pruning.sensitivity.probe import cross_entropy
from quantrim.recipes.loading import load
from quantrim.recipes.probes import probe_of
from quantrim.recipes.runs import best_key, validation
from quantrim.vision.config import Config, build_data, build_loss, build_optimizer, load_config
from quantrim.vision.train import TrainSettings, train

Prune = Callable[[nn.Module, Tensor, float], None]


def flops(module: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(x)
    return counter.get_total_flops()


def ours(criterion: str, probe: Probe, measured: bool) -> Prune:
    def run(module: nn.Module, x: Tensor, ratio: float) -> None:
        looked = survey(module, x)
        examples = Examples(probe.batches, lambda net, batch: cross_entropy(net(batch[0]), batch[1]).mean())
        found = None
        if measured:
            scores = score(module, looked.graph.groups, criterion, examples=examples)
            found = measure(Job(module, looked.graph.groups, scores, probe, recalibrate=True))
        prune(
            module, x, ratio=ratio, criterion=criterion, examples=examples, sensitivity=found, surveyed=looked
        )

    return run


def theirs(importance: Callable[[], object]) -> Prune:
    def shrink(module: nn.Module, x: Tensor, channels: float) -> None:
        module.train()  # in evaluation it doesn't see the heads that only train
        last = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear) and _is_output(m, module)]
        pruner = tp.pruner.BasePruner(
            module, torch.cat([x, x]), importance(), global_pruning=True, pruning_ratio=channels,
            max_pruning_ratio=0.9, ignored_layers=last, round_to=8,
        )  # fmt: skip
        pruner.step()

    def run(module: nn.Module, x: Tensor, ratio: float) -> None:
        goal, low, high = (1 - ratio) * flops(module, x), 0.0, 0.95
        for _ in range(7):
            middle, trial = (low + high) / 2, copy.deepcopy(module)
            shrink(trial, x, middle)
            low, high = (middle, high) if flops(trial, x) > goal else (low, middle)
        shrink(module, x, high)

    return run


def _is_output(layer: nn.Module, module: nn.Module) -> bool:
    """Whether a layer makes the classes: nothing else has so few channels here."""
    width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    return width in (2, 10)


def methods(probe: Probe) -> dict[str, Prune]:
    return {
        "quantrim l1 + sensitivity": ours("l1", probe, measured=True),
        "quantrim l1": ours("l1", probe, measured=False),
        "quantrim l2": ours("l2", probe, measured=False),
        "quantrim fpgm": ours("fpgm", probe, measured=False),
        "quantrim taylor": ours("taylor", probe, measured=False),
        "Torch-Pruning global L2": theirs(lambda: tp.importance.GroupMagnitudeImportance(p=2)),
        "Torch-Pruning FPGM": theirs(lambda: tp.importance.FPGMImportance()),
    }


def retrain(
    model: nn.Module, teacher: nn.Module, config: Config, iterations: int, rate: float, seed: int
) -> float:
    """Best metric of the retrained model, by the project's loop."""
    data = build_data(config, "train_dataset", seed=seed)
    optimizer, scheduler = build_optimizer(config, model, iterations=iterations, learning_rate=rate)
    key, judge = best_key(config), validation(config)
    settings = TrainSettings(
        iterations, batch_size=config.batch_size, save_interval=iterations, seed=seed, best_key=key
    )
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            model, settings, data, folder, loss_fn=build_loss(config, data.ignore_index), optimizer=optimizer,
            scheduler=scheduler, validate=judge, teacher=teacher, distill=distillation_loss, progress=False,
        )  # fmt: skip
    return float(result.best_metric or 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--cache", type=Path, required=True, help="JSON file of finished rows")
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    loaded, judge, key = load(config, arguments.weights), validation(config), best_key(config)
    probe, x = probe_of(config, arguments.samples), loaded.data[0][0][None]
    rows = json.loads(arguments.cache.read_text()) if arguments.cache.exists() else {}
    before = judge(loaded.model)[key]
    for ratio in map(float, arguments.ratios.split(",")):
        for name, apply in methods(probe).items():
            if f"{name}/{ratio}" in rows:
                continue
            model = copy.deepcopy(loaded.model)
            try:
                apply(model, x, ratio)
            except (IndexError, RuntimeError) as error:  # Torch-Pruning's, on layers that it doesn't know
                rows[f"{name}/{ratio}"] = {"fails": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
                write_json(arguments.cache, rows)
                continue
            recalibrate_batch_norm(model, (images for images, _ in probe.batches))
            row = {"flops": 1 - flops(model, x) / flops(loaded.model, x), "pruned": judge(model)[key]}
            row["retrained"] = retrain(
                model,
                copy.deepcopy(loaded.model),
                config,
                arguments.iters,
                arguments.learning_rate,
                arguments.seed,
            )
            rows[f"{name}/{ratio}"] = row
            write_json(arguments.cache, rows)
            print(name, ratio, row, flush=True)
    print(describe_machine().to_json())
    print(f"{key} before: {before:.4f}; {arguments.iters} iterations of retraining\n")
    print(f"| method | ratio | FLOPs | {key} pruned | {key} retrained |\n|---|---|---|---|---|")
    for name, row in rows.items():
        method, ratio = name.rsplit("/", 1)
        if "fails" in row:
            print(f"| {method} | {ratio} | fails: {row['fails']} | | |")
            continue
        print(f"| {method} | {ratio} | -{row['flops']:.1%} | {row['pruned']:.4f} | {row['retrained']:.4f} |")


if __name__ == "__main__":
    main()
