"""What ordinary training loops do to a quantized module: nothing may be wrong in silence."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.engines import open_session
from quantrim.errors import ConfigError, ModelError
from quantrim.qat import QAT, QATConfig, method
from quantrim.qat.quantizers.activations import LearnedClip, LearnedStep, MovingAverage, codes_for
from quantrim.qat.quantizers.fake_quantize import FakeQuantOptions, learned_clip
from quantrim.ranges import Range

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def step(module: nn.Module, x: Tensor = X) -> None:
    module.train()(x).float().square().mean().backward()


def file_distance(qat: QAT, path: Path, x: Tensor = X, engine: str = "onnxruntime") -> float:
    """Relative L2 distance of an exported file from the module."""
    qat.export(path)
    session = open_session(path, engine)
    got = session.run({session.inputs[0].name: x.numpy()})[session.outputs[0].name]
    with torch.no_grad():
        want = qat.module.eval()(x).numpy()
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


class SignedStep(nn.Module):
    """Codes -128..127 around zero point 0, perhaps cut short."""

    def __init__(self, cut: float = 1.0) -> None:
        super().__init__()
        self.step, self.cut = nn.Parameter(torch.tensor(4 / 127)), cut

    def qparams(self) -> tuple[Tensor, Tensor]:
        return self.step.detach(), torch.tensor(0.0)

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.clamp(torch.round(x / self.step.detach()), -128 * self.cut, 127 * self.cut)
        return x + (codes * self.step.detach() - x).detach()


def test_a_symmetric_quantizer_of_ones_own_computes_the_same_in_the_file(tmp_path: Path):
    qat = QAT(small(), X, config=QATConfig(activation_quantizer=SignedStep))
    assert file_distance(qat, tmp_path / "net.onnx") < 1e-3


def test_a_quantizer_that_clips_earlier_than_it_says_is_refused(tmp_path: Path):
    qat = QAT(small(), X, config=QATConfig(activation_quantizer=lambda: SignedStep(0.25)))
    with pytest.raises(ModelError, match=r"SignedStep.*computes something else than its qparams"):
        qat.export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", ["vector", "kept"])
def test_a_weight_quantizer_of_ones_own_may_give_its_channels_scales_as_a_vector(shape: str, tmp_path: Path):
    class Floor(nn.Module):
        def scale(self, weight: Tensor) -> Tensor:
            peaks = weight.detach().abs().amax((1, 2, 3), keepdim=True) / 7
            return peaks if shape == "kept" else peaks.reshape(-1)

        def forward(self, weight: Tensor) -> Tensor:
            scale = self.scale(weight).reshape(-1, 1, 1, 1)
            return weight + (torch.floor(weight / scale).clamp(-7, 7) * scale - weight).detach()

    qat = QAT(small(), X, config=QATConfig(weight_quantizer=Floor))
    assert file_distance(qat, tmp_path / "net.onnx") < 1e-3


def test_a_weight_quantizer_off_its_own_grid_is_refused(tmp_path: Path):
    class Half(nn.Module):
        def scale(self, weight: Tensor) -> Tensor:
            return weight.detach().abs().amax() / 127

        def forward(self, weight: Tensor) -> Tensor:
            return weight * 0.993

    with pytest.raises(ModelError, match=r"Half.*off the whole multiples"):
        QAT(small(), X, config=QATConfig(weight_quantizer=Half)).export(tmp_path / "net.onnx")


def test_what_prepares_an_activation_is_in_the_file(tmp_path: Path):
    class Squash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(1.1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.gain) - 0.1  # below zero behind a ReLU, too

    qat = QAT(small(), X, config=QATConfig(activation_preprocess=Squash))
    qat.calibrate([X])
    step(qat.module)
    assert file_distance(qat, tmp_path / "net.onnx") < 1e-3
    assert "Tanh" in [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]


@pytest.mark.parametrize("start", [1.02, 1.5, -0.5, 0.0])
def test_a_learned_step_comes_back_from_wherever_the_optimizer_threw_it(start: float):
    codes = codes_for("u8", 4, True, 6.0)
    quantizer = LearnedStep(codes, 1)
    top = 6.0 / codes.high
    quantizer.scale.data.fill_(start * top)
    x = torch.rand(1000)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02 * top)
    for _ in range(80):
        optimizer.zero_grad()
        (quantizer(x, 0) - x).square().sum().backward()
        optimizer.step()
    assert 0.05 * top < quantizer.scale.item() < 0.9 * top


@pytest.mark.parametrize("leave", [FakeQuantOptions(), FakeQuantOptions(marked=True)])
def test_pact_stops_the_gradient_at_alpha_not_half_a_step_later(leave: FakeQuantOptions):
    """Choi et al., equation 3, with the clip and the rounding written out."""
    torch.manual_seed(0)
    x, weight = torch.randn(4000) * 2, torch.randn(4000)
    grads = []
    for written_out in (True, False):
        leaf, top = x.clone().requires_grad_(), torch.tensor(1.5, requires_grad=True)
        scale = top.detach() / 7
        if written_out:
            clipped = 0.5 * (leaf.abs() - (leaf - top).abs() + top)
            y = clipped + (torch.round(clipped / scale) * scale - clipped).detach()
        else:
            y = learned_clip(leaf, scale, None, top, 0.0, 7.0, leave)
        (y * weight).sum().backward()
        grads.append((leaf.grad, top.grad))
    torch.testing.assert_close(grads[1][0], grads[0][0])
    torch.testing.assert_close(grads[1][1], grads[0][1], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_nothing_is_left_of_a_forward_that_was_interrupted(kind: type[BaseException]):
    module, other = small(), nn.Conv2d(3, 4, 3)
    QAT(module, X)
    module.eval()
    before, plain = module(X), other(X)

    def interrupt(*_: object) -> None:
        raise kind

    handle = module[2].register_forward_hook(interrupt)
    with pytest.raises(kind):
        module(X)
    handle.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(other(X), plain)
    assert torch.equal(module(X), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("name", ["default", "pact", "lsq"])
def test_a_bad_batch_leaves_no_trace_in_the_ranges(value: float | None, name: str):
    qat = QAT(small()[::3], X, config=method(name))
    qat.calibrate([X])
    bad = X[:0] if value is None else X.clone()
    if value is not None:
        bad[0, 0, 0, 0] = value
    ranges = [p.clone() for p in qat.quantizer_set.buffers()]
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        qat.module.train()(bad)
    if value is not None and name == "default":
        assert any("NaN or infinite" in str(w.message) for w in told)
    for kept, now in zip(ranges, qat.quantizer_set.buffers(), strict=True):
        assert torch.isfinite(now).all()
        assert torch.equal(kept, now) or value is not None


@pytest.mark.parametrize("name", ["default", "pact", "lsq"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_number_formats_train_with_ranges_in_float32(dtype: torch.dtype, name: str):
    qat = QAT(small(), X, config=method(name))
    qat.calibrate([X])
    want = copy.deepcopy(qat.module).eval()(X).detach()
    qat.module.to(dtype)
    assert all(
        p.dtype == torch.float32 for p in qat.quantizer_set.state_dict().values() if p.is_floating_point()
    )
    got = qat.module.eval()(X.to(dtype)).float()
    assert float((got - want).norm() / want.norm()) < 0.1
    if dtype != torch.float16:
        step(qat.module, X.to(dtype))


def test_compiled_modules_run_as_they_are():
    plain = QAT(small(), X).module.eval()
    want = plain(X)
    for compiled in (
        torch.compile(plain, backend="eager"),
        torch.compile(nn.Sequential(plain), backend="eager"),
    ):
        assert torch.equal(compiled(X), want)
    inside = small()
    inside[0] = torch.compile(inside[0], backend="eager")
    assert torch.equal(QAT(inside, X).module.eval()(X), want)


@pytest.mark.filterwarnings("ignore")
def test_scripted_submodules_stay_float_and_are_named():
    net = nn.Sequential(small(), torch.jit.script(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 2, 3))
    qat = QAT(net, X)
    assert "torch.jit" in qat.plan.float_nodes["1"]
    assert "2|weight@0" in qat.quantizer_set.weights
    step(qat.module)


class Fed(nn.Module):
    """A layer that reads constants alone, and one behind what no function mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.position = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 4, 1)
        self.register_buffer("table", torch.rand(1, 2, 10, 10))

    def forward(self, x: Tensor) -> Tensor:
        y = Twice.apply(F.relu(self.first(x)))
        return self.second(y + self.position(self.table)) + self.second(Twice.apply(y))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 2 * grad


def test_layers_of_constants_stay_float_and_opaque_functions_hide_nothing(tmp_path: Path):
    torch.manual_seed(0)
    qat = QAT(Fed(), X)
    assert qat.plan.float_nodes["position/conv"] == "input is a constant"
    assert {"second/conv", "second@1/conv"} <= qat.plan.int8_nodes
    step(qat.module)
    assert file_distance(qat, tmp_path / "net.onnx") < 1e-3


class Frozen(nn.Module):
    """A BatchNorm written out, as torchvision's FrozenBatchNorm2d is; and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
        )
        self.register_buffer("factor", torch.rand(1, 8, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x) * self.factor + self.shift.reshape(1, -1, 1, 1))
        for _ in range(2):
            x = F.relu(self.norm(self.second(x)))
        return x


def test_frozen_and_shared_batch_norms_are_folded(tmp_path: Path):
    torch.manual_seed(0)
    qat = QAT(Frozen(), X)
    qat.calibrate([X])
    step(qat.module)
    assert file_distance(qat, tmp_path / "net.onnx") < 1e-3
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert kinds.count("Conv") == 3
    assert not {"Mul", "Add", "BatchNormalization"} & set(kinds)


@pytest.mark.parametrize(
    ("mode", "value"),
    [("constant", -1.0), ("constant", 0.5), ("circular", 0.0), ("reflect", 0.0)],
)
def test_padding_keeps_its_value_and_loads_on_every_engine(value: float, mode: str, tmp_path: Path):
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            options = {"value": value} if mode == "constant" else {}
            return self.b(F.pad(F.relu(self.a(x)), (1, 2, 1, 0), mode=mode, **options))

    torch.manual_seed(0)
    module = Padded().eval()
    plain = module(X)
    qat = QAT(module, X)
    qat.calibrate([X])
    assert float((module.eval()(X) - plain).norm() / plain.norm()) < 0.05
    for engine in ("onnxruntime", "openvino"):
        assert file_distance(qat, tmp_path / "net.onnx", engine=engine) < 0.02


class Read(nn.Module):
    """A convolution with a bias whose result ops read that OpenVINO misreads behind a quantizer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.token, self.how = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(1, 1, 8)), how
        self.recurrent = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        rows = y.flatten(2).transpose(1, 2)
        if self.how == "token":
            return torch.cat([self.token.expand(len(x), -1, -1), rows], 1) * 2
        if self.how == "recurrent":
            return self.recurrent(rows)[0]
        return F.grid_sample(y, torch.zeros(1, 4, 4, 2).expand(len(x), -1, -1, -1), align_corners=False)


@pytest.mark.parametrize("how", ["token", "recurrent", "grid"])
def test_openvino_computes_what_the_module_computes_where_it_loses_biases(how: str, tmp_path: Path):
    torch.manual_seed(0)
    qat = QAT(Read(how), X)
    qat.calibrate([X])
    for engine in ("onnxruntime", "openvino"):
        assert file_distance(qat, tmp_path / "net.onnx", engine=engine) < 1e-3
    assert [answer.agrees for answer in qat.export(tmp_path / "net.onnx").engines] == [True, True]


@pytest.mark.parametrize("how", ["einsum", "attention", "baddbmm", "recurrent"])
def test_every_product_that_stays_float_is_named(how: str):
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r = nn.Linear(8, 8), nn.GRU(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if how == "recurrent":
                return self.r(y)[0]
            if how == "attention":
                return F.scaled_dot_product_attention(y, y, y)
            if how == "einsum":
                return torch.einsum("bij,bkj->bik", y, y)
            return torch.baddbmm(torch.zeros(1, 1, 1), y, y.transpose(1, 2))

    qat = QAT(Products(), torch.randn(2, 6, 8))
    assert len(qat.plan.float_nodes) == 1
    assert "quantrim doesn't quantize" in next(iter(qat.plan.float_nodes.values()))


def test_calibration_leaves_labels_out():
    ranges = []
    labels = torch.zeros(2, dtype=torch.long)
    for batches in ([X], [(X, labels)], [[X, labels, {"name": "a"}]], [((X,), labels)]):
        qat = QAT(small(), X)
        qat.calibrate(batches)
        ranges.append(qat.quantizers["input"].high.item())
    assert len(set(ranges)) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze_ranges_at": "5"},
        {"weight_quantizer": 3},
        {"activation_preprocess": "pact"},
        {"learned_rate": -1.0},
        {"learned_decay": float("nan")},
        {"window_size": 1.5},
        {"warm_up": True},
        {"compat_start": "yes"},
        {"skip": "head"},
        {"op_types": "conv"},
        {"skip_types": (3,)},
        {"rank_ranges": "min"},
    ],
)
def test_settings_of_the_wrong_kind_are_refused_by_name(settings: dict[str, object]):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        QATConfig(**settings)  # type: ignore[arg-type]


def test_quantizers_that_are_no_longer_placed_are_left_out_of_an_old_state():
    qat = QAT(small(), X)
    state = qat.module.state_dict()
    state["quantrim.activations.gone.low"] = torch.zeros(1)
    with pytest.warns(UserWarning, match="gone"):
        qat.load_state_dict(state)


@pytest.mark.parametrize("quantizer", [MovingAverage, LearnedStep, LearnedClip])
def test_empty_batches_pass_every_quantizer(quantizer: type):
    made = quantizer(codes_for("u8", 8, False, None), 1, *([0.9] if quantizer is MovingAverage else []))
    made.set_ranges([Range(-1.0, 1.0)], 1.0)
    x = torch.empty(0, 3, requires_grad=True)
    made(x, 0).sum().backward()
    assert x.grad is not None


def test_codes_in_the_file_are_those_of_onnx_runtime(tmp_path: Path):
    qat = QAT(small(), X)
    qat.calibrate([X])
    qat.export(tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), qat.module.eval()(X).detach())


def shrinking() -> nn.Sequential:
    """Untrained BatchNorms behind small weights: in evaluation next to nothing comes out of them."""
    net = small()
    nn.init.normal_(net[0].weight, std=1e-4)
    return net


@pytest.mark.parametrize("name", ["default", "pact", "lsq"])
def test_calibration_behind_untrained_batchnorms_sees_what_training_will_see(name: str):
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    plain = shrinking()
    qat = QAT(shrinking(), x, config=method(name))
    qat.calibrate([x])
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    assert all(torch.equal(qat.module.state_dict()[key], value) for key, value in before.items())
    assert qat.module[1].momentum == 0.1
    norms = []
    for net in (plain, qat.module):
        step(net, x)
        norms.append(float(nn.utils.get_total_norm([p.grad for p in net[:2].parameters()])))
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_calibration_keeps_the_statistics_of_trained_batchnorms():
    net = small()
    step(net)
    trained = net.state_dict()["1.running_var"].clone()
    qat = QAT(net.eval(), X)
    qat.calibrate([X])
    with torch.no_grad():
        high = float(F.relu(net[1](F.conv2d(X, net[0].weight, net[0].bias))).amax())
    assert torch.equal(net[1].running_var, trained)
    ranges = [float(q.bounds()[1]) for q in qat.quantizers.values()]
    assert any(end == pytest.approx(high, rel=0.2) for end in ranges)


def test_a_diverged_module_is_not_exported(tmp_path: Path):
    qat = QAT(small(), X)
    qat.module[1].running_var.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"'1.running_var' holds values that are NaN or infinite"):
        qat.export(tmp_path / "net.onnx")
