"""Fake quantization against its formula, gradients against finite differences of what they approximate."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from quantrim.qat.config import QATConfig
from quantrim.qat.quantizers.activations import (
    BatchRange,
    Codes,
    LearnedClip,
    LearnedStep,
    MovingAverage,
    WindowRange,
    codes_for,
)
from quantrim.qat.quantizers.fake_quantize import (
    TRACE,
    FakeQuantOptions,
    _dot,
    clip,
    fake_quantize,
    learned_clip,
    learned_step,
    straight_through,
)
from quantrim.qat.quantizers.weights import (
    ClippedQuantizer,
    ClippedWeight,
    LearnedStepWeight,
    TrackedWeight,
    WeightQuantizer,
)
from quantrim.ranges import Range, activation_scale

U8 = codes_for("u8", 8, False, None)
POSITIVE = codes_for("u8", 8, True, None)
S8 = codes_for("s8", 8, False, None)


def onnx_quantized(x: np.ndarray, scale: float, zero_point: int, dtype: type) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear of ONNX Runtime."""
    kind = TensorProto.UINT8 if dtype is np.uint8 else TensorProto.INT8
    operands = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("z", kind, [], [zero_point]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", ports[:1], ports[1:], operands)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@settings(max_examples=30, deadline=None)
@given(low=st.floats(-50, 0), high=st.floats(0.01, 50), signed=st.booleans(), seed=st.integers(0, 99))
def test_evaluation_is_bit_equal_to_onnx_runtime(low: float, high: float, signed: bool, seed: int):
    quantizer = MovingAverage(S8 if signed else U8, 1, 0.9).eval()
    quantizer.set_ranges([Range(low, high)], 1.0)
    scale, zero_point = quantizer.qparams()
    expected_scale = activation_scale(Range(low, high), "s8" if signed else "u8")
    assert scale.item() == pytest.approx(expected_scale.scale, rel=1e-6)
    x = 40 * torch.randn(500, generator=torch.Generator().manual_seed(seed))
    got = onnx_quantized(x.numpy(), scale.item(), int(zero_point), np.int8 if signed else np.uint8)
    assert np.array_equal(quantizer(x).numpy(), got)


def test_rounding_is_half_to_even_and_clips():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 300.0, -7.0])
    y = fake_quantize(x, torch.tensor(1.0), 0.0, 255.0)
    assert y.tolist() == [0.0, 2.0, 2.0, 0.0, 255.0, 0.0]


def test_the_formula_of_the_tutorial_with_numbers():
    """Q(x) = round(clip(x, -s, s) / s * 127) * s / 127, s = 2."""
    weight = torch.tensor([[2.0, -0.71, 0.013, -1.999]])
    got = WeightQuantizer(8, None)(weight)
    expected = np.round(np.clip(weight.numpy(), -2, 2) / 2 * 127) * 2 / 127
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "leave", [FakeQuantOptions(), FakeQuantOptions(marked=True), FakeQuantOptions(marked=True, reuse=True)]
)
def test_the_gradient_passes_inside_the_range_and_stops_where_values_are_clipped(leave: FakeQuantOptions):
    leaf = torch.tensor([-1.0, -0.2, 0.3, 200.0, 255.4, 255.6, 900.0], requires_grad=True)
    y = fake_quantize(leaf * 1.0, torch.tensor(1.0), 0.0, 255.0, leave)
    y.sum().backward()
    assert leaf.grad.tolist() == [0, 1, 1, 1, 1, 0, 0]
    torch.testing.assert_close(y.detach(), torch.tensor([0, 0, 0, 200.0, 255, 255, 255]), atol=3e-4, rtol=0)


def test_per_channel_and_other_dtypes_follow_the_same_rule():
    x = torch.tensor([[1.4, 300.0], [1.4, 300.0]], requires_grad=True)
    y = fake_quantize(x, torch.tensor([[1.0], [2.0]]), -127.0, 127.0, FakeQuantOptions(marked=True))
    y.sum().backward()
    assert y.tolist() == [[1.0, 127.0], [2.0, 254.0]]
    assert x.grad.tolist() == [[1, 0], [1, 0]]
    half = torch.tensor([1.4, 300.0], dtype=torch.bfloat16)
    assert fake_quantize(half, torch.tensor(1.0), 0.0, 255.0).dtype == torch.bfloat16


def test_covered_weights_pass_the_gradient_unchanged():
    weight = torch.randn(4, 3, requires_grad=True)
    straight_through(weight, torch.tensor(0.1)).mul(2).sum().backward()
    assert torch.equal(weight.grad, torch.full((4, 3), 2.0))


def lsq_reference(x: torch.Tensor, scale: torch.Tensor, low: float, high: float, gain: float) -> torch.Tensor:
    """Esser et al., appendix B: round and gradient scaling written with detach()."""
    scaled = scale * gain + (scale - scale * gain).detach()
    v = torch.clamp(x / scaled, low, high)
    return (torch.round(v) - v).detach().add(v) * scaled


@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_learned_step_has_the_gradients_of_the_papers_pseudo_code(shape: tuple[int, ...]):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64), torch.randn(4, 64)
    grads = []
    for function in (lsq_reference, lambda x, s, low, high, gain: learned_step(x, s, None, low, high, gain)):
        leaf, scale = x.clone().requires_grad_(), torch.full(shape, 0.37).requires_grad_()
        y = function(leaf, scale, -3.0, 3.0, 0.25)
        (y * weight).sum().backward()
        grads.append((y.detach(), leaf.grad, scale.grad))
    for got, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-128.0, 127.0), (-37.0, 218.0), (-8.0, 7.0)])
def test_a_learned_step_that_keeps_its_result_alone_has_the_same_gradients(
    low: float, high: float, reuse: bool
):
    torch.manual_seed(0)
    x, weight, found = torch.randn(20_000), torch.randn(20_000), []
    for leave in (FakeQuantOptions(), FakeQuantOptions(marked=True, reuse=reuse)):
        leaf, scale = x.clone().requires_grad_(), torch.tensor(3.0 / (high - low), requires_grad=True)
        offset = torch.tensor(0.0, requires_grad=True)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            y = learned_step(leaf * 1.0, scale, offset, low, high, 1.0, leave)
        (y * weight).sum().backward()
        found.append((y.detach() / scale.detach(), leaf.grad, scale.grad, offset.grad))
    assert sum(count == x.numel() for count in kept) == 1  # nothing but what the next layer keeps anyway
    plain, traced = found
    assert (plain[0] - traced[0]).abs().max() < 0.5 * TRACE + 1e-4
    assert torch.equal(traced[0].min(), plain[0].min())
    assert torch.equal(traced[0].max(), plain[0].max())
    assert torch.equal(plain[1], traced[1])
    torch.testing.assert_close(traced[2], plain[2], rtol=2e-3, atol=1.0)
    torch.testing.assert_close(traced[3], plain[3], rtol=1e-4, atol=1e-2)


def test_learned_offset_has_the_gradients_of_lsq_plus():
    """Bhalgat et al., equations 3 to 6: offset 1 where clipped; scale the code, counted from the first."""
    x = torch.tensor([-9.0, 0.26, 9.0], requires_grad=True)
    scale, offset = torch.tensor(0.1, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    y = learned_step(x, scale, offset, -10.0, 5.0, 1.0)
    y.sum().backward()
    assert y.tolist() == pytest.approx([-1.0, 0.3, 0.5])
    assert offset.grad.item() == pytest.approx(2.0)
    assert scale.grad.item() == pytest.approx(0 + (3 - 2.6) + 15, abs=1e-4)
    assert x.grad.tolist() == [0, 1, 0]


@pytest.mark.parametrize("leave", [FakeQuantOptions(), FakeQuantOptions(marked=True)])
def test_learned_thresholds_get_the_gradients_of_what_they_clip(leave: FakeQuantOptions):
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0, 4.0], requires_grad=True)
    bottom, top = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    scale = torch.tensor(2 / 255)
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    (learned_clip(x, scale, bottom, top, -128.0, 127.0, leave) * weight).sum().backward()
    assert bottom.grad.item() == pytest.approx(1.0, abs=1e-4)
    assert top.grad.item() == pytest.approx(24.0, abs=1e-4)
    assert x.grad.tolist() == [0, 2, 4, 0, 0]


@pytest.mark.parametrize("leave", [FakeQuantOptions(), FakeQuantOptions(marked=True)])
def test_one_threshold_of_symmetric_codes_is_moved_by_what_both_ends_clip(leave: FakeQuantOptions):
    """PaddleSlim's ``x - relu(x - a) + relu(-a - x)`` moves its lower end, too."""
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    top = torch.tensor(1.0, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0])
    (learned_clip(x, torch.tensor(1 / 127), None, top, -128.0, 127.0, leave) * weight).sum().backward()
    assert top.grad.item() == pytest.approx(8 - 128 / 127, abs=1e-4)
    assert x.grad.tolist() == [0, 2, 4, 0]


@pytest.mark.parametrize("leave", [FakeQuantOptions(), FakeQuantOptions(marked=True)])
def test_a_threshold_that_clips_nothing_gets_no_gradient(leave: FakeQuantOptions):
    x = torch.rand(64, requires_grad=True)
    top = torch.tensor(1.0, requires_grad=True)
    (learned_clip(x, torch.tensor(1 / 255), None, top, 0.0, 255.0, leave) * torch.randn(64)).sum().backward()
    assert top.grad.item() == 0


@pytest.mark.parametrize("threshold", [0.8, 100.0])
def test_clipping_and_rounding_a_weight_in_one_go_is_the_same_as_one_after_the_other(threshold: float):
    torch.manual_seed(0)
    weight, coefficients = torch.randn(6, 5, 3, 3), torch.randn(6, 5, 3, 3)
    weight[0] *= 0.1
    fused, before, after = ClippedQuantizer(8, 0), ClippedWeight(), WeightQuantizer(8, 0)
    grads = []
    for module, quantize in ((fused, fused), (before, lambda w: after(before(w)))):
        with torch.no_grad():
            module.threshold.fill_(threshold)
        leaf = weight.clone().requires_grad_()
        y = quantize(leaf)
        (y * coefficients).sum().backward()
        grads.append((y.detach(), leaf.grad, module.threshold.grad))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_sums_of_products_don_t_depend_on_the_memory_layout():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = (x * y).sum()
    last = torch.channels_last
    for left, right in (
        (x, y),
        (x.to(memory_format=last), y.to(memory_format=last)),
        (x, y.mT.mT.to(memory_format=last)),
    ):
        torch.testing.assert_close(_dot(left, right), expected)


def test_pact_on_weights_is_the_tutorials_expression():
    torch.manual_seed(0)
    weight, coefficients = torch.randn(50), torch.randn(50)

    def written_out(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return x - torch.relu(x - a) + torch.relu(-a - x)

    grads = []
    for function in (written_out, clip):
        leaf, threshold = weight.clone().requires_grad_(), torch.tensor(0.8, requires_grad=True)
        y = function(leaf, threshold)
        (y * coefficients).sum().backward()
        grads.append((y.detach(), leaf.grad, threshold.grad))
    for got, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, expected)
    module = ClippedWeight()
    module.start(weight)
    assert module.threshold.item() == weight.abs().max().item()


def test_moving_average_starts_at_the_first_batch_unlike_paddleslims():
    ours, theirs = MovingAverage(S8, 1, 0.9), MovingAverage(S8, 1, 0.9, compat=True)
    accum = state = 1.0
    for peak in (4.0, 8.0):
        for quantizer in (ours, theirs):
            quantizer(torch.tensor([-peak, peak]), 0)
        accum, state = 0.9 * accum + peak, 0.9 * state + 1
        assert theirs.high.item() == pytest.approx(accum / state)
        if peak == 4.0:
            assert ours.high.item() == 4.0
    assert ours.high.item() == pytest.approx((0.9 * 4 + 8) / 1.9)


def test_a_calibrated_range_outweighs_the_first_batch():
    quantizer = MovingAverage(U8, 1, 0.9)
    quantizer.set_ranges([Range(-1.0, 1.0)], trust=100.0)
    quantizer(torch.tensor([-11.0, 11.0]), 0)
    assert quantizer.high.item() == pytest.approx(2.0)


def test_members_have_averages_of_their_own_and_the_range_covers_all():
    quantizer = MovingAverage(POSITIVE, 2, 0.9)
    for _ in range(5):
        quantizer(torch.tensor([1.0]), 0)
        quantizer(torch.tensor([10.0]), 1)
    assert quantizer.high.tolist() == [1.0, 10.0]
    assert quantizer.bounds()[1].item() == 10.0


def test_batch_range_uses_each_batch_while_training_and_the_average_later():
    quantizer = BatchRange(POSITIVE, 1, 0.9)
    assert quantizer(torch.tensor([4.0]), 0).item() == pytest.approx(4.0, abs=1e-3)
    assert quantizer(torch.tensor([9.0]), 0).item() == pytest.approx(9.0, abs=1e-3)
    assert quantizer.eval()(torch.tensor([9.0])).item() == pytest.approx((0.9 * 4 + 9) / 1.9)


def test_window_range_forgets_what_left_the_window():
    quantizer = WindowRange(POSITIVE, 1, 2)
    quantizer.set_ranges([Range(0.0, 1.0)], trust=0.0)
    highs = []
    for peak in (5.0, 3.0, 2.0):
        quantizer(torch.tensor([peak]), 0)
        highs.append(quantizer.bounds()[1].item())
    assert highs == [5.0, 5.0, 3.0]


@pytest.mark.parametrize("quantizer", [LearnedStep, LearnedClip])
@pytest.mark.parametrize("codes", [U8, POSITIVE, S8, codes_for("u8", 4, False, None)])
def test_learned_ranges_start_at_the_calibrated_one(quantizer: type, codes: Codes):
    low = 0.0 if codes.non_negative else -1.0
    made, plain = quantizer(codes, 1).eval(), MovingAverage(codes, 1, 0.9).eval()
    for each in (made, plain):
        each.set_ranges([Range(low, 3.0)], 1.0)
    x = torch.linspace(-2, 4, 101)
    torch.testing.assert_close(made(x), plain(x))


def test_a_relu6_cap_bounds_every_range():
    codes = codes_for("u8", 8, True, 6.0)
    for quantizer in (MovingAverage(codes, 1, 0.9), LearnedStep(codes, 1), LearnedClip(codes, 1)):
        quantizer.set_ranges([Range(0.0, 50.0)], 1.0)
        assert quantizer.eval()(torch.tensor([40.0])).item() == pytest.approx(6.0)


def test_weight_scales_are_those_of_post_training_quantization():
    from quantrim.ranges import weight_scales

    weight = torch.randn(8, 3, 3, 3)
    weight[5] *= 1e-7  # all but dead
    got = WeightQuantizer(8, 0).scale(weight).reshape(-1).numpy()
    np.testing.assert_allclose(got, weight_scales(weight.numpy(), 0), rtol=1e-6)


def test_learned_weight_steps_start_at_the_papers_value_when_bits_are_few():
    weight = torch.randn(2, 4000)
    two, eight = LearnedStepWeight(2, 0, (2, 4000)), LearnedStepWeight(8, 0, (2, 4000))
    for quantizer in (two, eight):
        quantizer.start(weight)
    torch.testing.assert_close(two.step.detach(), 2 * weight.abs().mean(1, keepdim=True))
    torch.testing.assert_close(eight.step.detach(), weight.abs().amax(1, keepdim=True) / 127)


@pytest.mark.parametrize(("rate", "expected"), [(0.9, (0.9 * 1 + 3) / 1.9), (None, 3.0)])
def test_tracked_weights_follow_an_average_or_a_window(rate: float | None, expected: float):
    quantizer = TrackedWeight(8, None, (2,), rate, 4)
    for peak in (1.0, 3.0):
        quantizer(torch.tensor([peak, -0.1]))
    assert quantizer.tracked.item() * 127 == pytest.approx(expected)


def test_illegal_settings_are_refused_with_the_legal_ones():
    from quantrim.errors import ConfigError
    from quantrim.qat import method

    for changes, message in [
        ({"weight_bits": 0}, "1 to 16"),
        ({"activation_bits": 17}, "1 to 16"),
        ({"activation": "moving_averag"}, "did you mean 'moving_average'"),
        ({"moving_rate": 1.0}, r"in \(0, 1\)"),
        ({"weight": "range_abs_max"}, "weight_per_channel=False"),
        ({"initial_range": "klm"}, "did you mean 'kl'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            QATConfig(**changes)
    with pytest.raises(ConfigError, match="did you mean 'moving_rate'"):
        method("default", moving_rat=0.5)
    with pytest.raises(ConfigError, match="did you mean 'lsq'"):
        method("lsqq")
