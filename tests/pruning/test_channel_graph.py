"""Groups are exact lists of positions: removing them equals silencing them, or they are frozen and say why."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from adversarial import CASES, EXAMPLE, Attention, Case, TrainOnlyHead, WeightTying
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from quantrim.errors import ModelError
from quantrim.pruning import ChannelGroup, Limits, channel_groups, prune, survey
from quantrim.pruning.surgery import remove, zero


def outputs(module: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(module.eval()(EXAMPLE.double()))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def assert_exact(module: nn.Module, groups: list[ChannelGroup], seed: int) -> None:
    """A slow reference of our own: one random unit of a group removed, against the same unit zeroed."""
    generator = np.random.default_rng(seed)
    for group in groups:
        removal = group.removal([int(generator.integers(group.units))])
        silent, smaller = copy.deepcopy(module).double(), copy.deepcopy(module).double()
        zero(silent, removal)
        remove(smaller, removal)
        for one, other in zip(outputs(silent), outputs(smaller), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_adversarial_net_is_exact_or_frozen_with_its_reason(name: str):
    case: Case = CASES[name]
    torch.manual_seed(0)
    module = case.build()
    graph = channel_groups(module, EXAMPLE)
    made = {m.tensor.rpartition(".")[0] for g in graph.groups for m, role in g.roles.items() if role == "out"}
    made |= {group.name.partition("#")[0] for group in graph.groups}
    assert set(case.prunable) <= made
    reasons = [frozen.reason for frozen in graph.frozen]
    assert not case.reason or any(case.reason in reason for reason in reasons), reasons
    if not case.reason:
        assert all("output of the model" in reason for reason in reasons), reasons
    assert_exact(module, [group for group in graph.groups if not group.normalised], seed=0)


def test_outputs_keep_their_channels():
    for name in ("c2f", "train_only_head", "attention"):
        graph = channel_groups(CASES[name].build(), EXAMPLE)
        assert any("output of the model" in frozen.reason for frozen in graph.frozen)
        assert not any(group.name.startswith("head") for group in graph.groups)


def test_heads_that_run_in_training_alone_follow():
    module = TrainOnlyHead()
    graph = channel_groups(module, EXAMPLE)
    stem = next(group for group in graph.groups if group.name == "stem.0")
    assert any(member.tensor == "aux.0.0.weight" and member.dim == 1 for member in stem.members)
    remove(module, stem.removal([0, 5]))
    assert [tuple(out.shape) for out in module.train()(EXAMPLE)] == [(2, 4, 16, 16)] * 2


def test_tied_weights_are_removed_once():
    module = WeightTying()
    group = channel_groups(module, EXAMPLE).groups[0]
    remove(module, group.removal([1]))
    assert module.a.weight is module.b.weight
    assert module.a.weight.shape == (15, 15, 3, 3)


def test_width_of_heads_shrinks_alike_in_q_k_and_v():
    graph = channel_groups(Attention(), EXAMPLE)
    qkv = next(group for group in graph.groups if group.name == "qkv")
    rows = next(rows for member, rows in qkv.members.items() if member.tensor == "qkv.weight")
    assert rows[0].tolist() == [0, 8, 16, 24, 32, 40]


def test_protected_layers_stay():
    graph = channel_groups(CASES["c2f"].build(), EXAMPLE, protect=["stem"])
    assert "stem.0" not in {group.name for group in graph.groups}
    assert any(f.layer == "stem.0" and f.reason == "protected by request" for f in graph.frozen)
    with pytest.raises(ModelError, match="no module"):
        channel_groups(CASES["c2f"].build(), EXAMPLE, protect=["stemm"])


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (nn.DataParallel, "Prune its .module"),
        (lambda m: torch.compile(m, backend="eager"), "_orig_mod"),
        (lambda m: (nn.utils.parametrizations.weight_norm(m.head), m)[1], "remove_parametrizations"),
    ],
)
def test_wrappers_are_refused_in_one_line(wrap, words: str):
    with pytest.raises(ModelError, match=words) as caught:
        channel_groups(wrap(CASES["c2f"].build()), EXAMPLE)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_random_in_evaluation_is_refused():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + torch.rand_like(x[:, :1])

    with pytest.raises(ModelError, match="evaluation mode"):
        channel_groups(Noisy(), EXAMPLE)


def test_inputs_that_the_model_refuses_are_named():
    with pytest.raises(ModelError, match="fails on the example inputs"):
        channel_groups(CASES["c2f"].build(), torch.randn(1, 5, 8, 8))


def test_module_is_left_as_it_was():
    module = CASES["train_only_head"].build().train()
    before = copy.deepcopy(module.state_dict())
    channel_groups(module, EXAMPLE)
    assert module.training
    assert module.aux.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_forward_that_fails_in_training_alone_is_pruned_and_says_so():
    class Untrainable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("labels are missing")
            return self.head(self.stem(x))

    graph = channel_groups(Untrainable(), EXAMPLE)
    assert [group.name for group in graph.groups] == ["stem"]
    assert "labels are missing" in graph.unexported[""]


def test_a_model_without_groups_is_surveyed():
    looked = survey(nn.Conv2d(3, 4, 1), EXAMPLE)
    assert not looked.graph.groups
    assert looked.largest_ratio == 0


class Blocks(nn.Module):
    """Layers whose channels are reduced, standardised, or read under another setting."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.head, self.how = nn.Conv2d(32, 4, 1), how
        self.scale = nn.Parameter(torch.ones(1, 32, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return self.head(getattr(self, self.how)(x))

    def autocast(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            y = torch.relu(self.b(x)).flatten(2)
            y = torch.einsum("ncp,ncq->npq", y, y).softmax(-1) @ y.transpose(1, 2)
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    def layer_norm(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        return self.scale * centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()

    def response_norm(self, x: torch.Tensor) -> torch.Tensor:
        norm = x.norm(dim=(2, 3), keepdim=True)
        return self.scale * x * (norm / (norm.mean(1, keepdim=True) + 1e-6)) + x

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.b(x), dim=1)

    def standardised(self, x: torch.Tensor) -> torch.Tensor:
        w = self.b.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return nn.functional.conv2d(x, w, self.b.bias, padding=1)

    def standardised_by_batch_norm(self, x: torch.Tensor) -> torch.Tensor:
        gain = torch.full((self.b.out_channels,), self.b.weight[0].numel() ** -0.5)
        w = self.b.weight.reshape(1, self.b.out_channels, -1)
        w = nn.functional.batch_norm(w, None, None, weight=gain, training=True, momentum=0.0)
        return nn.functional.conv2d(x, w.reshape_as(self.b.weight), self.b.bias, padding=1)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.prod(1, keepdim=True)

    def exponents(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.exp().sum(1, keepdim=True)


@pytest.mark.parametrize(
    "how",
    ["autocast", "layer_norm", "response_norm", "normalize", "standardised", "standardised_by_batch_norm"],
)
def test_channels_under_statistics_and_settings_are_pruned(how: str):
    torch.manual_seed(0)
    module, x = Blocks(how).eval(), torch.randn(2, 3, 12, 12)
    graph = channel_groups(module, x)
    assert "a" in {group.name for group in graph.groups}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    result = prune(module, x, ratio=0.3, limits=Limits(align=2, min_channels=2))
    assert result.flops["before"] == counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as after:
        assert module(x).isfinite().all()
    assert result.flops["after"] == after.get_total_flops()
    assert 0.3 <= result.achieved < 0.4


@pytest.mark.parametrize("how", ["product", "exponents"])
def test_reductions_that_silent_channels_change_freeze_with_their_name(how: str):
    torch.manual_seed(0)
    graph = channel_groups(Blocks(how).eval(), torch.randn(2, 3, 12, 12))
    (frozen,) = (one for one in graph.frozen if one.layer == "a")
    assert "reduced by" in frozen.reason


def test_unequal_parts_follow_where_their_sizes_are_computed():
    class Parts(nn.Module):
        def __init__(self, computed: bool) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
            self.c, self.d, self.computed = nn.Conv2d(8, 4, 1), nn.Conv2d(16, 4, 1), computed

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes = [self.a.out_channels, self.b.out_channels] if self.computed else [8, 16]
            one, other = torch.cat([self.a(x), self.b(x)], 1).split(sizes, 1)
            return self.c(one) + self.d(other)

    assert {group.name for group in channel_groups(Parts(True), EXAMPLE).groups} == {"a", "b"}
    frozen = {one.layer: one.reason for one in channel_groups(Parts(False), EXAMPLE).frozen}
    assert "split into unequal parts" in frozen["a"] + frozen["b"]


def test_globs_protect_what_they_match():
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(nn.Conv2d(16, 16, 1)), nn.Conv2d(16, 4, 1))
    assert [g.name for g in channel_groups(module, EXAMPLE, protect=["1.*"]).groups] == ["0"]
    assert [g.name for g in channel_groups(module, EXAMPLE, protect=["[0]"]).groups] == ["1.0"]
    with pytest.raises(ModelError, match=r"protected layer '3\*' is no module"):
        channel_groups(module, EXAMPLE, protect=["3*"])
