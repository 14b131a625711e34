"""Masks, cuts, workers and resumed files all give what a plain evaluation of a rebuilt model gives."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from adversarial import CASES
from torch import nn

from quantrim.errors import CheckpointError, ConfigError, EngineError, ModelError
from quantrim.pruning import (
    Job,
    Probe,
    channel_groups,
    cross_entropy,
    error_rate,
    estimate_cost,
    iou_loss,
    load_sensitivity,
    measure,
    probe_without_labels,
    recalibrate_batch_norm,
    score,
)
from quantrim.pruning.sensitivity.curves import Curve, Point
from quantrim.pruning.sensitivity.evaluate import MaskedEvaluator
from quantrim.pruning.sensitivity.probe import direct_losses
from quantrim.pruning.sensitivity.sensitivity import require_workers
from quantrim.pruning.surgery import remove, zero
from quantrim.recipes.sensitivity_plot import plot_sensitivity
from quantrim.vision.models import BiSeNetV2


def job_of(module: nn.Module, shape: tuple[int, ...] = (4, 3, 16, 16), batches: int = 2, **options) -> Job:
    generator = torch.Generator().manual_seed(0)
    module.train()
    with torch.no_grad():
        for _ in range(3):  # settle the running statistics
            module(torch.randn(shape, generator=generator))
    module.eval()
    inputs = [torch.randn(shape, generator=generator) for _ in range(batches)]
    probe = probe_without_labels(module, inputs)
    groups = channel_groups(module, inputs[0]).groups
    return Job(module, groups, score(module, groups, "l2"), probe, **options)


@pytest.fixture(scope="module")
def c2f() -> Job:
    torch.manual_seed(0)
    return job_of(CASES["c2f"].build())


@pytest.mark.parametrize("cache_mb", [512.0, 0.02, 0.0])
def test_a_mask_costs_what_the_rebuilt_model_costs(cache_mb: float):
    torch.manual_seed(0)
    job = job_of(BiSeNetV2(3), (2, 3, 64, 64))
    evaluator = MaskedEvaluator(job.module, job.probe, cache_mb=cache_mb)
    assert evaluator.graph is not None
    weights = copy.deepcopy(job.module.state_dict())
    for group in evaluator.order(job.groups)[::5]:
        removal = group.removal(np.argsort(job.scores[group.name])[: group.units // 2])
        rebuilt = copy.deepcopy(job.module)
        remove(rebuilt, removal)
        found = evaluator.losses(group, removal)
        np.testing.assert_allclose(found, direct_losses(rebuilt, job.probe), rtol=2e-4, atol=1e-6)
    for name, value in job.module.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_norms_measured_anew_are_those_of_one_large_batch(c2f: Job):
    evaluator = MaskedEvaluator(c2f.module, c2f.probe, recalibrate=True)
    assert evaluator.graph is not None
    inputs, target = (torch.cat(parts) for parts in zip(*c2f.probe.batches, strict=True))
    for group in (None, *evaluator.order(c2f.groups)):
        removal = group.removal(range(group.units // 2)) if group else {}
        slow = copy.deepcopy(c2f.module)
        zero(slow, removal)
        for layer in slow.modules():
            layer.train(isinstance(layer, nn.BatchNorm2d))
        with torch.no_grad():
            expected = c2f.probe.losses(slow(inputs), target)
        found = evaluator.losses(group, removal or None)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_groups_under_a_layer_norm_are_rebuilt_since_zeros_stay_in_statistics():
    job = job_of(CASES["layer_norm"].build())
    group = next(group for group in job.groups if group.normalised)
    removal = group.removal([0, 1, 2])
    rebuilt = copy.deepcopy(job.module)
    remove(rebuilt, removal)
    found = MaskedEvaluator(job.module, job.probe).losses(group, removal)
    np.testing.assert_allclose(found, direct_losses(rebuilt, job.probe), rtol=1e-5)


def test_standard_errors_are_those_of_paired_differences(c2f: Job):
    measured = measure(replace(c2f, ratios=(0.5,)))
    group = c2f.groups[0]
    rebuilt = copy.deepcopy(c2f.module)
    remove(rebuilt, group.removal(np.argsort(c2f.scores[group.name], kind="stable")[: group.units // 2]))
    rises = direct_losses(rebuilt, c2f.probe) - direct_losses(c2f.module, c2f.probe)
    (point,) = measured.groups[group.name].points
    assert point.loss == pytest.approx(rises.mean(), rel=1e-4)
    assert point.error == pytest.approx(rises.std(ddof=1) / np.sqrt(len(rises)), rel=1e-3)


def test_four_to_seven_evaluations_a_group_are_enough(c2f: Job):
    measured = measure(c2f)
    assert measured.evaluations <= 7 * len(c2f.groups) + 1 == estimate_cost(c2f).evaluations
    assert all(len(curve.points) >= 4 for curve in measured.groups.values())
    assert set(measured.groups) == {group.name for group in c2f.groups}


def test_workers_give_the_same_numbers(c2f: Job):
    alone, spread = measure(c2f), measure(c2f, workers=2)
    assert alone.groups.keys() == spread.groups.keys()
    for name, curve in alone.groups.items():
        for one, other in zip(curve.points, spread.groups[name].points, strict=True):
            assert (one.ratio, one.loss, one.error) == pytest.approx(
                (other.ratio, other.loss, other.error), rel=1e-5
            )
    assert alone.evaluations <= spread.evaluations
    assert not any(p.is_shared() for p in c2f.module.parameters())  # each masks a copy of its own


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_gives_the_same_numbers(c2f: Job):
    import ray

    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}  # of adversarial.py
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    try:
        alone, spread = measure(c2f), measure(c2f, workers="ray")
    finally:
        ray.shutdown()
    for name, curve in alone.groups.items():
        losses = [point.loss for point in spread.groups[name].points]
        assert [point.loss for point in curve.points] == pytest.approx(losses, rel=1e-5)


class DiesInWorkers(nn.Module):
    """Ends the process that runs it, unless that is the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.home, self.net = os.getpid(), CASES["flip"].build()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if os.getpid() != self.home:
            os._exit(1)
        return self.net(x)


def test_a_model_that_cannot_be_sent_is_told_in_one_line():
    class Local(nn.Sequential):
        pass

    with pytest.raises(EngineError, match="can't be sent to other processes"):
        measure(job_of(Local(CASES["flip"].build())), workers=2)


def test_a_worker_that_dies_is_told_in_one_line():
    with pytest.raises(EngineError, match="a measuring process died") as caught:
        measure(job_of(DiesInWorkers()), workers=2)
    assert "\n" not in str(caught.value)


def test_a_killed_run_goes_on_where_it_was(c2f: Job, tmp_path: Path):
    path = tmp_path / "sensitivity.json"

    class KilledError(Exception):
        pass

    def kill(progress) -> None:
        if progress.done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        measure(c2f, path=path, on_progress=kill)
    assert len(load_sensitivity(path).groups) == 2
    seen = []
    resumed = measure(c2f, path=path, on_progress=lambda progress: seen.append(progress.total))
    assert set(seen) == {len(c2f.groups) - 2}
    assert resumed.groups == measure(c2f).groups == load_sensitivity(path).groups


@pytest.mark.parametrize(
    ("change", "words"), [("model", "another model"), ("data", "other data"), ("settings", "other settings")]
)
def test_a_stale_file_is_refused(c2f: Job, tmp_path: Path, change: str, words: str):
    path = tmp_path / "sensitivity.json"
    measure(replace(c2f, ratios=(0.5,)), path=path)
    other = replace(c2f, ratios=(0.5,), module=copy.deepcopy(c2f.module))
    if change == "model":
        with torch.no_grad():
            next(other.module.parameters()).add_(1e-3)
    elif change == "data":
        (inputs, target), *rest = other.probe.batches
        other = replace(other, probe=Probe(((inputs + 1e-3, target), *rest), other.probe.losses))
    else:
        other = replace(other, ratios=(0.25,))
    with pytest.raises(CheckpointError, match=words):
        measure(other, path=path)


def test_a_damaged_file_is_refused(tmp_path: Path):
    path = tmp_path / "sensitivity.json"
    for content in ("{", json.dumps({"format": 1, "groups": {"a": {}}}), json.dumps([1])):
        path.write_text(content)
        with pytest.raises(CheckpointError):
            load_sensitivity(path)


def test_curves_are_monotone_and_pass_through_what_was_measured():
    predicted = tuple(float(r**2) for r in np.arange(0.05, 1, 0.05))
    curve = Curve((Point(0.25, 0.1, 0.01), Point(0.5, 0.6, 0.02)), predicted)
    ratios = np.linspace(0, 0.95, 40)
    values = curve(ratios)
    assert values[0] == 0
    assert (np.diff(values) >= 0).all()
    assert curve(np.array([0.25, 0.5])) == pytest.approx([0.1, 0.6])


def test_curves_stay_between_measurements_where_scores_predict_nothing():
    dead = (*(1e-7 * step for step in range(1, 11)), 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.1, 1.5, 2.0)
    curve = Curve((Point(0.5, 0.6, 0.1), Point(0.75, 6.7, 0.5)), dead)
    assert (curve(np.linspace(0, 0.5, 20)) <= 0.6).all()
    assert curve(np.array([0.25])) == pytest.approx(0.3)  # straight: the scores are all but zero there
    assert 0.6 < curve(np.array([0.6]))[0] < curve(np.array([0.7]))[0] < 6.7 < curve(np.array([0.9]))[0] < 12


def test_samples_are_no_more_than_the_standard_error_needs():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()
    x, y = torch.randn(1024, 3, 6, 6), torch.randint(0, 4, (1024,))
    seen = []

    def counted(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(len(target))
        return nn.functional.cross_entropy(outputs, target, reduction="none")

    (group,) = channel_groups(net, x[:1]).groups
    job = Job(
        net, (group,), score(net, [group], "l1"), Probe(zip(x.split(64), y.split(64), strict=True), counted)
    )
    point = measure(replace(job, ratios=(0.5,))).groups[group.name].points[0]
    asked = sum(seen) - 64 - 1024  # the fingerprint's batch and the unpruned model
    assert 128 <= asked < 1024
    assert point.error <= max(0.1 * abs(point.loss), 0.005 * 1.6)


def slow_losses(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, target, reduction="none")


@pytest.mark.parametrize(
    "losses",
    [
        nn.CrossEntropyLoss(reduction="none"),
        nn.CrossEntropyLoss(),  # of the whole batch
        functools.partial(nn.functional.cross_entropy, reduction="none"),
        lambda outputs, target: slow_losses(outputs, target)[:, None].expand(-1, 3),
    ],
)
def test_any_callable_is_a_loss(losses):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    x, y = torch.randn(6, 3, 6, 6), torch.randint(0, 4, (6,))
    expected = direct_losses(net, Probe([(x, y)], slow_losses))
    np.testing.assert_allclose(direct_losses(net, Probe([(x, y)], losses)), expected, rtol=1e-5)


def test_a_loss_that_gives_no_samples_is_refused_in_one_line():
    net, x = nn.Conv2d(3, 4, 3), torch.randn(3, 3, 6, 6)
    with pytest.raises(ModelError, match=r"shape \(2,\) for 3 samples"):
        direct_losses(net, Probe([(x, torch.zeros(3))], lambda outputs, target: torch.zeros(2)))


def test_a_file_of_another_loss_of_the_same_name_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()
    x, y = torch.randn(6, 3, 6, 6), torch.randint(0, 4, (6,))
    groups = channel_groups(net, x).groups

    def run(factor: float) -> None:
        probe = Probe([(x, y)], lambda outputs, target: factor * slow_losses(outputs, target))
        measure(Job(net, groups, score(net, groups, "l1"), probe), path=tmp_path / "s.json")

    run(1.0)
    run(1.0)
    with pytest.raises(CheckpointError, match="another loss"):
        run(2.0)


def test_losses_know_unknown_pixels_and_class_255():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[:, 0] = 255
    wrong = logits.argmax(1) != target
    torch.testing.assert_close(error_rate(logits, target), wrong[:, 1:].float().mean((1, 2)))
    many, labels = torch.randn(2, 300), torch.tensor([255, 3])
    torch.testing.assert_close(
        cross_entropy(many, labels), nn.functional.cross_entropy(many, labels, reduction="none")
    )
    perfect = nn.functional.one_hot(target.clamp_max(2), 3).movedim(-1, 1).float()
    torch.testing.assert_close(iou_loss(perfect, target), torch.zeros(2, dtype=torch.double))
    one, other = torch.tensor([[[[1.0, 1, 0, 0]], [[0, 0, 1, 1.0]]]]), torch.tensor([[[0, 1, 1, 1]]])
    assert float(iou_loss(one, other)) == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)


def test_statistics_behind_global_pooling_of_single_images_stay():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8)
    ).eval()
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        values = net[0](x)
    for sizes in ([1, 1, 1, 1, 1], [4, 1], [2, 3]):
        one = copy.deepcopy(net)
        recalibrate_batch_norm(one, x.split(sizes))
        torch.testing.assert_close(one[1].running_mean, values.mean((0, 2, 3)))
        torch.testing.assert_close(one[1].running_var, values.var((0, 2, 3)))
        assert torch.equal(one[3].running_var, net[3].running_var) == (sizes == [1, 1, 1, 1, 1])
        assert not one[1].training


def test_recalibrated_statistics_are_plain_averages_of_the_batches():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    batches = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    recalibrate_batch_norm(module, batches)
    with torch.no_grad():
        means = torch.stack([module[0](batch).mean((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(module[1].running_mean, means.mean(0))
    assert module.training
    assert module[1].momentum == 0.1


def test_cross_entropy_leaves_out_what_is_not_known():
    logits = torch.randn(2, 3, 4, 4)
    target = torch.randint(0, 3, (2, 4, 4))
    target[0, :2] = 255
    found = cross_entropy([logits], target)
    expected = nn.functional.cross_entropy(logits[:1], target[:1], ignore_index=255)
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)


def test_a_model_that_cannot_be_exported_is_measured_by_its_own_forward():
    job = job_of(CASES["data_dependent"].build())
    evaluator = MaskedEvaluator(job.module, job.probe)
    assert evaluator.graph is None
    assert measure(replace(job, ratios=(0.5,))).groups["block.0.0"].points[0].loss > 0


def test_plot_is_written(c2f: Job, tmp_path: Path):
    measured = measure(replace(c2f, ratios=(0.5,)))
    plot_sensitivity(measured, tmp_path / "sensitivity.svg")
    root = ElementTree.parse(tmp_path / "sensitivity.svg").getroot()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {group.name for group in c2f.groups} <= set(words)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == len(c2f.groups)


@pytest.mark.parametrize("workers", [0, -1, "many"])
def test_workers_must_be_a_number_or_ray(workers):
    with pytest.raises(ConfigError, match="workers"):
        require_workers(workers)
