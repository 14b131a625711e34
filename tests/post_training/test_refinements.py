import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.graph import graph_from_onnx, normalize, prove_equal, random_feed, read_onnx
from quantrim.graph.feeds import calibration_feeds
from quantrim.graph.from_onnx import constant
from quantrim.graph.from_torch import export_onnx
from quantrim.graph.normalize import run_model
from quantrim.graph.ports import input_ports
from quantrim.graph.session import with_outputs
from quantrim.placement import place
from quantrim.placement.qdq import write_qdq
from quantrim.post_training.calibrate import collect, scales_of_plan, tensor_ranges
from quantrim.post_training.quantize import held_apart, weight_codes
from quantrim.post_training.refine import equalize, noise, refine_weights
from quantrim.post_training.refine.adaround import adaptive_rounding
from quantrim.post_training.refine.bias import _known, correct_bias
from quantrim.post_training.refine.walk import dequantize, walk
from quantrim.targets import PORTABLE


@pytest.fixture(scope="module")
def setting(residual_onnx, images):
    model = normalize(read_onnx(residual_onnx))
    graph = graph_from_onnx(model, random_feed(model))
    plan = place(graph, PORTABLE)
    feeds = list(calibration_feeds(images, input_ports(model), batch_size=4))
    sketches = collect(model, plan.groups, feeds)
    scales = scales_of_plan(plan, tensor_ranges(plan, sketches, "min_max", hist_percent=1.0))
    return model, graph, plan, scales, weight_codes(model, plan, scales), feeds


def test_a_walk_that_changes_nothing_computes_what_the_qdq_file_computes(setting):
    model, graph, plan, scales, weights, feeds = setting
    seen = {}

    def look(step):
        seen[step.node.output] = step.run(step.x, dequantize(step.codes), step.bias)
        return step.codes

    walk(model, graph, plan, scales, weights, feeds[:1], look)
    names = [name for name in seen if name not in plan.groups]
    quantized = with_outputs(write_qdq(model, plan, scales, weights), names)
    got = run_model(quantized, feeds[0])
    for name in names:
        error = np.abs(got[name] - seen[name]).max() / np.abs(seen[name]).max()
        assert error < 0.03, name


def test_bias_correction_never_raises_an_error_and_removes_means_that_are_known(setting):
    model, graph, plan, scales, weights, feeds = setting
    errors = []

    def correct(step):
        codes = correct_bias(step)
        after = step.y - step.run(step.x, dequantize(codes), codes.bias)
        before = step.y - step.run(step.x, dequantize(step.codes), step.bias)
        axes = tuple(a for a in range(after.ndim) if a != (after.ndim - 1 if step.node.op == "linear" else 1))
        means = [np.abs(one.mean(axis=axes)) for one in (before, after)]
        errors.append(
            (bool((means[1] <= means[0] + 1e-4).all()), np.square(before).mean(), np.square(after).mean())
        )
        return codes

    walk(model, graph, plan, scales, weights, feeds, correct)
    assert len(errors) == len(plan.weights)
    assert all(smaller and after <= before + 1e-9 for smaller, before, after in errors)


@pytest.mark.parametrize(("offset", "kept"), [(1.0, 0.99), (0.0, 0.5)])
def test_a_mean_error_is_corrected_as_far_as_samples_agree_on_it(offset, kept):
    """An offset that all samples share goes into the bias whole; a mean that is chance goes in for less."""
    errors = offset + np.random.default_rng(0).normal(size=(16, 400)) * 0.1
    shrunk = _known(errors)
    assert (np.abs(shrunk) <= np.abs(errors.mean(axis=0))).all()
    share = np.linalg.norm(shrunk) / np.linalg.norm(errors.mean(axis=0))
    assert share > kept if offset else share < kept + 0.3
    truth = np.full(400, offset)
    assert np.linalg.norm(shrunk - truth) <= np.linalg.norm(errors.mean(axis=0) - truth) * 1.01
    np.testing.assert_array_equal(_known(errors[:1]), errors[0])


def test_refinements_are_judged_on_batches_that_they_did_not_see():
    feeds = [{"x": np.full((2, 3), index)} for index in range(9)]
    fitted, judged = held_apart(feeds, 8)
    assert [feed["x"][0, 0] for feed in fitted] == [0, 1, 2, 3, 4, 5]
    assert [feed["x"][0, 0] for feed in judged] == [6, 7, 8]
    assert len(held_apart([{"x": np.zeros((2, 3))} for _ in range(50)], 8)[1]) == 4
    assert held_apart(feeds[:1], 8) == (feeds[:1], feeds[:1])


def test_adaptive_rounding_is_never_worse_than_nearest_on_its_layer_and_moves_codes_by_one(setting):
    model, graph, plan, scales, _, feeds = setting
    coarse = {
        name: dataclasses.replace(
            codes, scales=codes.scales * 16, codes=np.rint(codes.codes / 16.0).astype(np.int8)
        )
        for name, codes in weight_codes(model, plan, scales).items()
    }
    gains = []

    def correct(step):
        new = adaptive_rounding(step, iterations=200)
        before, after = (
            np.square(step.y - step.run(step.x, dequantize(codes), step.bias)).mean()
            for codes in (step.codes, new)
        )
        gains.append(before / max(after, 1e-20))
        assert np.abs(new.codes.astype(int) - step.codes.codes).max() <= 1
        return step.codes

    walk(model, graph, plan, scales, coarse, feeds, correct)
    assert min(gains) > 0.98
    assert max(gains) > 1.1


def test_refined_weights_lower_the_error_at_the_outputs(setting):
    model, graph, plan, scales, weights, feeds = setting
    expected = [run_model(model, feed) for feed in feeds]
    refined = refine_weights(model, graph, plan, scales, weights, feeds, ["bias"])
    assert noise(model, plan, scales, refined, feeds, expected) < noise(
        model, plan, scales, weights, feeds, expected
    )


def test_equalisation_keeps_the_function_and_evens_out_the_weight_ranges(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(),
                        nn.Conv2d(8, 4, 1))  # fmt: skip
    with torch.no_grad():
        net[0].weight *= torch.logspace(-2, 2, 8).view(-1, 1, 1, 1)
    export_onnx(net, torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")
    model = normalize(read_onnx(tmp_path / "m.onnx"))
    graph = graph_from_onnx(model, random_feed(model))
    equal = equalize(model, graph)
    assert prove_equal(model, equal, random_feed(model)) < 1e-5

    def spread(m):
        first = graph.nodes[0].weight.name
        largest = np.abs(constant(m, first)).reshape(8, -1).max(axis=1)
        return largest.max() / largest.min()

    assert spread(equal) < spread(model) / 10
