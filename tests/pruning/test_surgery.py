"""What knows the number of channels follows: attributes, optimizer, moving average, stored plans."""

from __future__ import annotations

import copy
import errno
import json
from pathlib import Path

import pytest
import torch
from adversarial import CASES, EXAMPLE
from torch import Tensor, nn

from quantrim.errors import CheckpointError, ModelError, QuantrimError
from quantrim.graph.from_torch import export_onnx
from quantrim.pruning import Limits, load_pruned, prune, read_plan, save_pruned
from quantrim.pruning.groups.walk import Member
from quantrim.pruning.plan import empty_plan
from quantrim.pruning.surgery import remove

ANY_WIDTH = Limits(align=1, min_channels=1)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name].build()


@pytest.mark.parametrize(
    "name", ["c2f", "depth_multiplier", "grouped_conv", "transposed", "layer_norm", "group_norm"]
)
def test_attributes_tell_the_new_sizes(name: str):
    module = built(name)
    prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        elif isinstance(layer, nn.ConvTranspose2d):
            assert layer.weight.shape[:2] == (layer.in_channels, layer.out_channels // layer.groups)
        elif isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.num_features == len(layer.weight) == len(layer.running_mean)
        elif isinstance(layer, nn.LayerNorm):
            assert layer.normalized_shape == tuple(layer.weight.shape)
        elif isinstance(layer, nn.GroupNorm):
            assert layer.num_channels == len(layer.weight)


@pytest.mark.parametrize("build", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.Adam])
def test_optimizer_goes_on_with_the_parameters_that_stand_for_its_own(build):
    module = built("c2f")
    optimizer = build(module.parameters())
    module(EXAMPLE).square().mean().backward()
    optimizer.step()
    state = optimizer.state[module.cv1[0].weight]
    before = {name: value.clone() for name, value in state.items() if torch.is_tensor(value) and value.ndim}
    result = prune(module, EXAMPLE, ratio=0.4, optimizer=optimizer, limits=ANY_WIDTH)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert held == [id(parameter) for parameter in module.parameters()]
    state = optimizer.state[module.cv1[0].weight]
    kept = [list(result.plan.kept.get(Member("cv1.0.weight", d), range(16))) for d in (0, 1)]
    for name, value in before.items():
        assert torch.equal(state[name], value[kept[0]][:, kept[1]])
    optimizer.zero_grad()
    module(EXAMPLE).square().mean().backward()
    before_step = module.cv1[0].weight.clone()
    optimizer.step()
    assert not torch.equal(before_step, module.cv1[0].weight)


def test_gradients_are_sliced_with_their_parameters():
    module = built("flip")
    module(EXAMPLE).square().mean().backward()
    before = module.stem[0].weight.grad.clone()
    result = prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH)
    assert torch.equal(module.stem[0].weight.grad, before[list(result.plan.kept[Member("stem.0.weight", 0)])])


@pytest.mark.parametrize("told", [True, False])
def test_training_goes_on_while_the_last_loss_lives(told: bool):
    module = built("c2f").train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    loss = module(EXAMPLE).square().mean()
    loss.backward()
    optimizer.step()
    prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH, optimizer=optimizer if told else None)
    twin = copy.deepcopy(module)
    for one in (module, twin):
        one.zero_grad()
        one(EXAMPLE).square().mean().backward()
    assert loss.isfinite()  # and its graph with it
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    if told:
        optimizer.step()
    else:
        with pytest.raises(ModelError, match="Pass optimizer to prune"):
            optimizer.step()


def test_tied_weights_stay_tied_and_marks_stay():
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))
    module[2].weight = module[1].weight
    module[0].weight.no_decay = True
    prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH)
    assert module[2].weight is module[1].weight
    assert module[1].weight.shape == (module[1].out_channels, module[1].in_channels, 1, 1)
    assert module[0].weight.no_decay


def test_averages_inside_wrappers_follow():
    timm = pytest.importorskip("timm.utils")
    for wrap in (timm.ModelEmaV2, timm.ModelEmaV3, torch.optim.swa_utils.AveragedModel, nn.DataParallel):
        module = built("c2f").eval()
        average = wrap(copy.deepcopy(module))
        prune(module, EXAMPLE, ratio=0.4, followers=iter([average]), limits=ANY_WIDTH)
        torch.testing.assert_close(module(EXAMPLE), average.module.eval()(EXAMPLE), rtol=0, atol=0)


def test_a_moving_average_follows():
    module = built("c2f")
    average = copy.deepcopy(module)
    prune(module, EXAMPLE, ratio=0.4, followers=[average], limits=ANY_WIDTH)
    for one, other in zip(module.parameters(), average.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(module.eval()(EXAMPLE), average.eval()(EXAMPLE))


def test_a_fresh_model_becomes_the_pruned_one(tmp_path: Path):
    module = built("c2f")
    result = prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH)
    save_pruned(module, result.plan, tmp_path)
    again = load_pruned(CASES["c2f"].build(), tmp_path)
    torch.testing.assert_close(module.eval()(EXAMPLE), again.eval()(EXAMPLE), rtol=0, atol=0)
    assert again.cv1[0].out_channels == module.cv1[0].out_channels
    assert export_onnx(again, EXAMPLE, tmp_path / "pruned.onnx") < 1e-4


def test_rounds_of_pruning_make_one_plan(tmp_path: Path):
    module = built("c2f")
    plan = empty_plan(module)
    for _ in range(2):
        plan = plan.then(prune(module, EXAMPLE, ratio=0.2, limits=ANY_WIDTH).plan.removal)
    save_pruned(module, plan, tmp_path)
    again = load_pruned(CASES["c2f"].build(), tmp_path)
    torch.testing.assert_close(module.eval()(EXAMPLE), again.eval()(EXAMPLE), rtol=0, atol=0)


def test_stored_weights_hold_live_tensors_only(tmp_path: Path):
    module = built("c2f")
    save_pruned(module, prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH).plan, tmp_path)
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(state) == set(module.state_dict())
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in state.values())


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    module = built("flip")
    plan = prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH).plan
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(QuantrimError, match="No space left on device"):
        save_pruned(module, plan, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda plan: plan.update(format=99), "format"),
        (lambda plan: plan["kept"].update({"stem.0.weight": {"0": [3, 1]}}), "damaged"),
        (lambda plan: plan["kept"].update({"stem.0.weight": {"0": [0, 99]}}), "damaged"),
        (lambda plan: plan["kept"].update({"nowhere": {"0": [0]}}), "damaged"),
        (lambda plan: plan.pop("shapes"), "damaged"),
        (lambda plan: plan["shapes"].update({"stem.0.weight": [24, 3, 3, 3]}), "planned for"),
    ],
)
def test_damaged_plans_are_refused_in_one_line(tmp_path: Path, damage, words: str):
    module = built("flip")
    save_pruned(module, prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH).plan, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    damage(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    fresh = CASES["flip"].build()
    with pytest.raises(CheckpointError, match=words) as caught:
        load_pruned(fresh, tmp_path)
    assert "\n" not in str(caught.value)
    assert fresh.stem[0].out_channels == 16


def test_a_plan_of_another_model_is_refused(tmp_path: Path):
    module = built("c2f")
    save_pruned(module, prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH).plan, tmp_path)
    with pytest.raises(CheckpointError, match="another model than Flip"):
        load_pruned(CASES["flip"].build(), tmp_path)
    with pytest.raises(CheckpointError, match="can't be read"):
        read_plan(tmp_path / "missing")


def test_a_removal_that_leaves_nothing_is_refused():
    with pytest.raises(ModelError, match="at least one channel"):
        remove(built("flip"), {Member("stem.0.weight", 0): torch.arange(16).numpy()})


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).mean((2, 3)))


def test_several_optimizers_and_their_schedules_go_on():
    module = Small()
    optimizers = [
        torch.optim.SGD(module.a.parameters(), 0.1, momentum=0.9),
        torch.optim.LBFGS(module.b.parameters()),
    ]
    schedule = torch.optim.lr_scheduler.StepLR(optimizers[0], 1)

    def closure() -> Tensor:
        module.zero_grad()
        loss = module(EXAMPLE).square().mean()
        loss.backward()
        return loss

    for one in optimizers:
        one.step(closure)
    prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH, optimizer=optimizers)
    before = [module.a.weight.clone(), module.b.weight.clone()]
    for one in optimizers:
        one.step(closure)
    schedule.step()
    assert not any(
        torch.equal(one, other.weight) for one, other in zip(before, (module.a, module.b), strict=True)
    )


def test_an_optimizer_that_keeps_parameters_elsewhere_is_refused_before_anything_changes():
    module = Small()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    optimizer.order = [list(module.parameters())]
    shapes = [value.shape for value in module.parameters()]
    with pytest.raises(ModelError, match="keeps parameters in 'order'"):
        prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH, optimizer=optimizer)
    assert [value.shape for value in module.parameters()] == shapes


def test_hooks_of_parameters_stay():
    module, seen = Small(), []
    module.a.weight.register_hook(lambda gradient: seen.append("gradient"))
    module.b.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.shape))
    prune(module, EXAMPLE, ratio=0.4, limits=ANY_WIDTH)
    module(EXAMPLE).sum().backward()
    assert seen == [module.b.weight.shape, "gradient"]
