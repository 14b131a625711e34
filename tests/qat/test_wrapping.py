"""The user's module stays the user's: modes, copies, states, loops and control flow."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quantrim.errors import CheckpointError, ConfigError, ModelError
from quantrim.qat import QAT, QATConfig, method

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Net(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = Block()
        self.fc = nn.Linear(8, 4)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def net(**arguments: bool) -> Net:
    torch.manual_seed(0)
    return Net(**arguments)


def train_step(module: nn.Module, x: Tensor = EXAMPLE) -> dict[str, Tensor]:
    module.zero_grad()
    output = module(x)
    output.square().mean().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_keys_of_the_users_state_are_unchanged_and_quantizers_have_their_own():
    plain = net()
    qat = QAT(net(), EXAMPLE)
    own = {key for key in qat.module.state_dict() if not key.startswith("quantrim.")}
    assert own == set(plain.state_dict())
    assert any(key.startswith("quantrim.activations.") for key in qat.module.state_dict())
    assert type(qat.module) is Net


def test_not_in_place_leaves_the_module_alone():
    plain = net()
    qat = QAT(plain, EXAMPLE, inplace=False)
    assert qat.module is not plain
    assert not hasattr(plain, "quantrim")
    assert not plain._forward_hooks


def test_quantizing_twice_is_refused():
    qat = QAT(net(), EXAMPLE)
    with pytest.raises(ModelError, match="quantized already"):
        QAT(qat.module, EXAMPLE)


def test_removing_gives_the_float_module_back():
    plain = net().eval()
    expected = plain(EXAMPLE)
    qat = QAT(plain, EXAMPLE)
    assert not torch.equal(plain(EXAMPLE), expected)
    assert torch.equal(qat.remove()(EXAMPLE), expected)
    assert not hasattr(plain, "quantrim")


def test_a_deepcopy_has_quantizers_and_hooks_of_its_own():
    qat = QAT(net(), EXAMPLE)
    twin = copy.deepcopy(qat.module)
    qat.module.eval(), twin.eval()
    assert torch.equal(qat.module(EXAMPLE), twin(EXAMPLE))
    train_step(twin.train(), 100 * EXAMPLE)
    assert not torch.equal(
        twin.quantrim.activations["input"].high, qat.module.quantrim.activations["input"].high
    )


def test_states_survive_a_file(tmp_path: Path):
    first = QAT(net(), EXAMPLE, config=method("lsq"))
    train_step(first.module.train(), 3 * EXAMPLE)
    torch.save(first.module.state_dict(), tmp_path / "state.pt")
    second = QAT(net(), EXAMPLE, config=method("lsq"))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first.module.eval()(EXAMPLE), second.module.eval()(EXAMPLE))


def test_a_state_of_other_settings_is_refused_with_the_keys():
    lsq = QAT(net(), EXAMPLE, config=method("lsq"))
    plain = QAT(net(), EXAMPLE)
    with pytest.raises(CheckpointError, match="quantrim"):
        plain.load_state_dict(lsq.module.state_dict())


def test_evaluation_changes_no_statistics_and_training_does():
    qat = QAT(net(), EXAMPLE)
    before = copy.deepcopy(qat.module.state_dict())
    qat.module.eval()(5 * EXAMPLE)
    assert all(torch.equal(before[key], value) for key, value in qat.module.state_dict().items())
    qat.module.train()(5 * EXAMPLE)
    assert qat.quantizers["input"].high.item() == pytest.approx(5 * EXAMPLE.max().item())


def test_tracing_leaves_batch_norm_statistics_and_random_state_alone():
    module = net()
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    QAT(module, EXAMPLE)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in before.items())


def test_a_tensor_has_one_quantizer_however_many_layers_read_it():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.left(x) * self.right(x)

    qat = QAT(Branches(), EXAMPLE)
    assert sum(name.endswith("relu") for name in qat.quantizers) == 1
    assert sorted(qat.quantizers) == ["input", "left/conv", "relu", "right/conv"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_observes_once(reentrant: bool):
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.block, self.stem(x), use_reentrant=reentrant)
            return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    plain = QAT(net(), EXAMPLE).module.train()
    torch.manual_seed(0)
    saving = QAT(Checkpointed(), EXAMPLE).module.train()
    expected, got = train_step(plain), train_step(saving)
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])
    for name, value in plain.quantrim.state_dict().items():
        torch.testing.assert_close(saving.quantrim.state_dict()[name], value)


def test_checkpointing_a_module_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(checkpoint(self.block, x, use_reentrant=False))

    module = QAT(Twice(), EXAMPLE).module.train()
    output = module(EXAMPLE)
    with pytest.raises(ModelError, match="used 2 times"):
        output.sum().backward()


@pytest.mark.parametrize("name", ["default", "lsq", "pact"])
def test_bfloat16_autocast_trains(name: str):
    qat = QAT(net(), EXAMPLE, config=method(name))
    qat.module.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = qat.module(EXAMPLE).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in qat.module.parameters() if p.grad is not None)
    assert sum(p.grad is not None for p in qat.module.parameters()) == len(list(qat.module.parameters()))


def test_an_ema_copy_averages_weights_and_quantizers():
    qat = QAT(net(), EXAMPLE)
    average = torch.optim.swa_utils.AveragedModel(qat.module, use_buffers=True)
    for scale in (1.0, 2.0):
        qat.module.train()(scale * EXAMPLE)
        average.update_parameters(qat.module)
    average.eval()(EXAMPLE)
    low, high = EXAMPLE.max().item(), 1.5 * EXAMPLE.max().item()
    assert low < average.module.quantrim.activations["input"].high.item() < high


def test_a_module_called_twice_has_one_weight_and_two_activation_quantizers():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.conv(self.relu(self.conv(x))))

    qat = QAT(Twice(), EXAMPLE)
    assert list(qat.quantizer_set.weights) == ["conv|weight@0"]
    assert list(qat.quantizers) == ["input", "relu/relu", "relu@1/relu"]


def test_tied_weights_share_a_quantizer():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x)))

    qat = QAT(Tied(), torch.randn(2, 8))
    assert list(qat.quantizer_set.weights) == ["first|weight@0"]
    grads = train_step(qat.module.train(), torch.randn(2, 8))
    assert "first.weight" in grads


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dark, self.bright, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bright if x.mean() > 0 else self.dark
        return self.head(F.relu(branch(x)))


def test_control_flow_trains_on_every_branch_that_an_example_has_shown(tmp_path: Path):
    bright, dark = EXAMPLE.abs(), -EXAMPLE.abs()
    qat = QAT(Branching(), bright, more_examples=[dark])
    for x in (bright, dark):
        grads = train_step(qat.module.train(), x)
        assert len(grads) == 4
    assert set(qat.quantizer_set.weights) == {"dark|weight@0", "bright|weight@0", "head|weight@0"}
    with pytest.raises(ModelError, match=r"Control flow.*torch\.cond"):
        qat.export(tmp_path / "branching.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unseen_branch_is_an_error_that_names_the_module():
    qat = QAT(Branching(), EXAMPLE.abs())
    with pytest.raises(ModelError, match=r"'dark'.*more_examples"):
        qat.module(-EXAMPLE.abs())
    assert not qat.quantizer_set.running
    qat.module(EXAMPLE.abs())


def test_calls_in_an_order_that_depends_on_the_mode_are_refused():
    class Shifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Parameter(torch.randn(4, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            extra = F.conv2d(x, self.b).mean() if self.training else 0.0
            return F.relu(F.conv2d(x, self.a)) + extra

    with pytest.raises(ModelError, match="order that depends"):
        QAT(Shifting(), EXAMPLE)


def test_auxiliary_heads_train_in_float_and_outputs_may_be_nested(tmp_path: Path):
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.main, self.aux = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            x = F.relu(self.body(x))
            logits = [self.main(x)]
            return {"logits": [*logits, self.aux(x)] if self.training else logits}

    qat = QAT(Heads(), EXAMPLE)
    trained = qat.module.train()(EXAMPLE)["logits"]
    assert len(trained) == 2
    assert "aux|weight@0" not in qat.quantizer_set.weights
    assert "main|weight@0" in qat.quantizer_set.weights
    result = qat.export(tmp_path / "heads.onnx")
    assert result.agreement.beyond_edge == 0


def test_submodules_can_be_called_by_themselves():
    qat = QAT(net(), EXAMPLE)
    qat.module.eval()
    features = qat.module.stem(EXAMPLE)
    assert torch.equal(
        qat.module.fc(F.adaptive_avg_pool2d(qat.module.block(features), 1).flatten(1)).argmax(1),
        qat.module(EXAMPLE).argmax(1),
    )
    assert features.unique().numel() <= 256


def test_an_in_place_op_whose_result_is_dropped_still_reads_quantized(tmp_path: Path):
    class Statement(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            F.relu(x, inplace=True)
            return self.second(x)

    qat = QAT(Statement(), EXAMPLE)
    train_step(qat.module.train())
    assert qat.export(tmp_path / "statement.onnx").agreement.beyond_edge == 0


def test_a_relu_that_shares_a_quantizer_with_signed_tensors_keeps_its_result_for_the_backward_pass():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(3, 4, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([F.relu(self.left(x)), self.right(x)], 1))

    qat = QAT(Joined(), EXAMPLE)
    assert qat.plan.groups["relu"] == qat.plan.groups["right/conv"]
    assert len(train_step(qat.module.train())) == 8


def test_keyword_inputs_work(tmp_path: Path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image: Tensor, *, gain: Tensor) -> Tensor:
            return F.relu(self.conv(image)) * gain

    qat = QAT(Two(), {"image": EXAMPLE, "gain": torch.ones(2, 1, 1, 1)})
    result = qat.export(tmp_path / "two.onnx", input_names=["image", "gain"])
    assert result.agreement.beyond_edge == 0


def test_skipping_by_glob_type_and_attribute():
    def weights(config: QATConfig | None = None, marked: bool = False) -> set[str]:
        module = net()
        if marked:
            module.block.conv1.skip_quant = True
        return set(QAT(module, EXAMPLE, config=config).quantizer_set.weights)

    every = weights()
    assert weights(QATConfig(skip=("block*",))) == every - {"block|conv1|weight@0", "block|conv2|weight@0"}
    assert weights(QATConfig(skip=("fc",))) == every - {"fc|weight@0"}
    assert weights(QATConfig(skip_types=(nn.Linear,))) == every - {"fc|weight@0"}
    assert weights(marked=True) == every - {"block|conv1|weight@0"}


def test_a_skip_glob_that_matches_nothing_suggests_a_module():
    with pytest.raises(ConfigError, match="did you mean 'block'"):
        QAT(net(), EXAMPLE, config=QATConfig(skip=("blok",)))


def test_a_model_without_layers_to_quantize_is_an_error():
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        QAT(nn.ReLU(), EXAMPLE)
    with pytest.raises(ModelError, match="skipped by"):
        QAT(nn.Sequential(nn.Conv2d(3, 4, 3)), EXAMPLE, config=QATConfig(skip=("0",)))


def test_schedules_switch_quantization_observers_and_batch_norm():
    config = QATConfig(warm_up=1, freeze_ranges_at=2, freeze_batch_norm_at=3)
    qat = QAT(net(), EXAMPLE, config=config)
    module = qat.module.train()
    statistics = module.stem[1].running_mean

    plain = net().train()
    expected = plain(EXAMPLE)
    qat.advance(0)
    assert torch.equal(module(EXAMPLE), expected)
    assert qat.quantizers["input"].high.item() == EXAMPLE.max().item()
    qat.advance(1)
    assert not torch.equal(module(EXAMPLE), expected)
    qat.advance(2)
    high = qat.quantizers["input"].high.item()
    module(10 * EXAMPLE)
    assert qat.quantizers["input"].high.item() == high
    qat.advance(3)
    kept = statistics.clone()
    module.train()(EXAMPLE)
    assert torch.equal(module.stem[1].running_mean, kept)


def test_distributed_training_keeps_replicas_equal(tmp_path: Path):
    mp.spawn(_distributed, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in first.items():
        if "weight" in name and "activations" not in name:
            torch.testing.assert_close(second[name], value, msg=name)


def _distributed(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    qat = QAT(net(), EXAMPLE, config=method("lsq"))
    parallel = nn.parallel.DistributedDataParallel(qat.module.train())
    optimizer = torch.optim.SGD(qat.parameter_groups(0.01))
    for step in range(2):
        optimizer.zero_grad()
        parallel((1 + rank + step) * EXAMPLE).square().mean().backward()
        optimizer.step()
    torch.save(qat.module.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["max", "mean"])
def test_ranges_of_several_processes_are_merged_as_asked(how: str, tmp_path: Path):
    mp.spawn(_observing, args=(str(tmp_path), how), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
    alone = QAT(net(), EXAMPLE)
    alone.calibrate([EXAMPLE])
    alone.module.train()({"max": 5.0, "mean": 3.0}[how] * EXAMPLE)
    torch.testing.assert_close(first, alone.quantizers["input"].high.detach())


def _observing(rank: int, folder: str, how: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29518")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    qat = QAT(net(), EXAMPLE, config=QATConfig(rank_ranges=how))  # type: ignore[arg-type]
    qat.calibrate([EXAMPLE])
    nn.parallel.DistributedDataParallel(qat.module.train())((5.0 if rank else 1.0) * EXAMPLE)
    torch.save(qat.quantizers["input"].high, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
