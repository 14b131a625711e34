"""Uses that nobody plans for: copies of copies, threads, layouts, odd arguments, fresh processes."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.qat import QAT, QATConfig, method

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
METHODS = ("default", "pact", "lsq")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), nn.Conv2d(8, 4, 1),
    )  # fmt: skip


def step(module: nn.Module, *inputs: object, rate: float = 0.01) -> float:
    module.train()
    leaves, _ = torch.utils._pytree.tree_flatten(module(*(inputs or (X,))))
    loss = torch.stack([leaf.float().square().mean() for leaf in leaves]).sum()
    module.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
    return loss.item()


def exported_share(qat: QAT, folder: Path) -> float:
    result = qat.export(folder / "net.onnx")
    assert result.agreement.beyond_edge == 0
    return result.agreement.share


class RootOfRelu(nn.Module):
    """A quantized tensor that an op reads which minds the least value below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.second(y), torch.sqrt(y + y)


@pytest.mark.parametrize("name", METHODS)
def test_values_that_others_see_are_never_below_zero_behind_a_relu(name: str):
    module = QAT(RootOfRelu(), X, config=method(name)).module.train()
    roots = module(X)[1]
    assert torch.isfinite(roots).all()
    assert (roots == 0).any()
    assert not any(read.exposed for read in QAT(small(), X).quantizer_set.layout.sites["3/conv"].reads)


def test_a_copy_of_the_whole_object_trains_and_exports_apart_from_the_first(tmp_path: Path):
    first = QAT(small(), X, config=method("pact"))
    before = copy.deepcopy(first.module.state_dict())
    twin = copy.deepcopy(first)
    assert twin.quantizer_set is twin.module.quantrim
    step(twin.module, 3 * X)
    assert exported_share(twin, tmp_path) > 0.999
    assert all(torch.equal(before[key], value) for key, value in first.module.state_dict().items())


def test_a_state_loads_in_a_fresh_process_without_unpickling_code(tmp_path: Path):
    qat = QAT(small(), X, config=method("pact"))
    step(qat.module, 2 * X)
    torch.save({"state": qat.module.state_dict(), "x": X}, tmp_path / "state.pt")
    torch.save(qat.module.eval()(X), tmp_path / "expected.pt")
    program = """
import sys, torch
from torch import nn
from quantrim.qat import QAT, method
saved = torch.load(sys.argv[1] + "/state.pt", weights_only=True)
net = nn.Sequential(
    nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
    nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), nn.Conv2d(8, 4, 1),
)
qat = QAT(net, torch.zeros(1, 3, 12, 12), config=method("pact"))
qat.load_state_dict(saved["state"])
expected = torch.load(sys.argv[1] + "/expected.pt", weights_only=True)
assert torch.equal(qat.module.eval()(saved["x"]), expected)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_may_predict_at_the_same_time():
    module = QAT(small(), X).module.eval()
    expected = module(X)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(lambda _: module(X).detach(), range(40)))


@pytest.mark.parametrize("name", METHODS)
def test_channels_last_gives_the_same_gradients(name: str):
    # no value of these lies on the edge between two codes, where the layouts' sums may round either way
    grads, images = [], 0.9 * X
    for layout in (torch.contiguous_format, torch.channels_last):
        module = QAT(small(), images, config=method(name)).module.to(memory_format=layout)
        step(module, images.to(memory_format=layout), rate=0)
        grads.append({key: p.grad for key, p in module.named_parameters()})
    for key, expected in grads[0].items():
        torch.testing.assert_close(grads[1][key], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("default", marks=pytest.mark.slow), "pact", "lsq"])
def test_what_autocast_has_trained_is_exact_in_the_file(name: str, tmp_path: Path):
    qat = QAT(small(), X, config=method(name))
    with torch.autocast("cpu", torch.bfloat16):
        step(qat.module)
    assert exported_share(qat, tmp_path) > 0.999


def test_learned_steps_of_every_branch_start_from_its_weights():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dark, self.bright = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu((self.bright if x.mean() > 0 else self.dark)(x))

    qat = QAT(Branching(), X.abs(), more_examples=[-X.abs()], config=method("lsq"))
    for quantizer in qat.quantizer_set.weights.values():
        assert quantizer.step.max() < 0.01
    qat.calibrate([X.abs()])
    assert all(quantizer.step.max() < 0.01 for quantizer in qat.quantizer_set.weights.values())


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(
        self, images: list[Tensor], gain: Tensor, mask: Tensor | None = None, positive: bool = True
    ) -> list[Tensor]:
        outputs = [self.conv(image) * gain for image in images]
        return [F.relu(output) for output in outputs] if positive else outputs


def test_arguments_may_be_lists_scalars_flags_and_none(tmp_path: Path):
    qat = QAT(Flagged(), ([X, 2 * X], torch.tensor(2.0), None, True))
    step(qat.module, [X, X], torch.tensor(1.0))
    assert exported_share(qat, tmp_path) > 0.999
    named = QAT(Flagged(), {"images": [X], "gain": torch.tensor(2.0), "mask": None})
    assert exported_share(named, tmp_path) > 0.999


def test_a_channel_that_is_all_bias_keeps_its_sign_in_the_file(tmp_path: Path):
    """Its gamma is nearly zero; a bias that filled int32 would wrap around with the products added."""
    module = small().eval()
    with torch.no_grad():
        module[1].weight[0], module[1].bias[0] = -2.5e-6, 3.0
    qat = QAT(module, X)
    assert exported_share(qat, tmp_path) > 0.999


def test_a_residual_branch_that_starts_at_zero_exports(tmp_path: Path):
    class ZeroStart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.head = nn.Conv2d(3, 4, 1)
            nn.init.zeros_(self.bn.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.bn(self.conv(x)) + x))

    qat = QAT(ZeroStart(), X)
    step(qat.module, rate=1e-4)
    assert exported_share(qat, tmp_path) > 0.999


def test_an_example_of_batch_size_one_exports_with_a_free_batch(tmp_path: Path):
    qat = QAT(small(), X[:1])
    assert exported_share(qat, tmp_path) > 0.999
    shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param
    assert [dim.dim_value for dim in shape.dim][1:] == [3, 12, 12]


@pytest.mark.parametrize(
    "wrap", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm]
)
def test_parametrized_weights_train_and_export(wrap: object, tmp_path: Path):
    torch.manual_seed(0)
    module = nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 1))
    qat = QAT(module, X)
    step(module)
    assert exported_share(qat, tmp_path) > 0.999


@pytest.mark.parametrize("name", ["default", pytest.param("pact", marks=pytest.mark.slow), "lsq"])
def test_four_bit_weights_export_as_int8_codes_of_the_same_values(name: str, tmp_path: Path):
    qat = QAT(small(), X, config=method(name, weight_bits=4))
    step(qat.module)
    assert exported_share(qat, tmp_path) > 0.999


@pytest.mark.slow
def test_a_compiled_module_computes_the_same():
    module = QAT(small(), X).module.eval()
    torch.testing.assert_close(torch.compile(module, backend="eager")(X), module(X))


def test_a_backward_pass_may_run_twice_and_gradients_add_up():
    module = QAT(small(), X, config=QATConfig(freeze_ranges_at=0)).module.train()
    loss = module(X).square().mean()
    loss.backward(retain_graph=True)
    once = module[0].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(module[0].weight.grad, 2 * once)
