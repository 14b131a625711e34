import numpy as np
import pytest

from quantrim.errors import DataError
from quantrim.graph import graph_from_onnx, normalize, random_feed, read_onnx
from quantrim.graph.feeds import calibration_feeds
from quantrim.graph.normalize import run_model
from quantrim.graph.ports import input_ports
from quantrim.graph.session import with_outputs
from quantrim.placement import place
from quantrim.post_training.calibrate import collect, tensor_ranges
from quantrim.targets import PORTABLE


@pytest.fixture
def model(residual_onnx):
    return normalize(read_onnx(residual_onnx))


def test_sketches_hold_the_extremes_of_the_real_tensors(model, images):
    plan = place(graph_from_onnx(model, random_feed(model)), PORTABLE)
    sketches = collect(model, plan.groups, calibration_feeds(images, input_ports(model), batch_size=5))
    values = run_model(with_outputs(model, plan.groups), {"image": images}) | {"image": images}
    for tensor in plan.groups:
        assert sketches[tensor].low == pytest.approx(float(values[tensor].min()), rel=1e-5, abs=1e-6)
        assert sketches[tensor].high == pytest.approx(float(values[tensor].max()), rel=1e-5, abs=1e-6)
        assert sketches[tensor].samples == len(images)


def test_the_batch_size_does_not_change_the_result(model, images):
    ports = input_ports(model)
    one, six = (collect(model, ["image"], calibration_feeds(images, ports, batch_size=size)) for size in (1, 6))
    np.testing.assert_array_equal(one["image"].counts, six["image"].counts)


def test_tensors_of_a_group_share_the_union_of_their_ranges_and_overrides_apply(model, images):
    plan = place(graph_from_onnx(model, random_feed(model)), PORTABLE)
    sketches = collect(model, plan.groups, calibration_feeds(images, input_ports(model)))
    ranges = tensor_ranges(plan, sketches, "min_max", hist_percent=0.999, overrides=[("image", "avg")])
    assert ranges["image"].high < sketches["image"].high
    for tensor, group in plan.groups.items():
        assert ranges[tensor] == ranges[group]


def test_a_model_that_makes_nan_is_reported_with_the_tensor(model):
    huge = np.full((1, 3, 32, 32), 3e38, np.float32)
    plan = place(graph_from_onnx(model, random_feed(model)), PORTABLE)
    with pytest.raises(DataError, match="NaN or infinite values during calibration"):
        collect(model, plan.groups, [{"image": huge}])
