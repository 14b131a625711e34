"""Scores against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantrim.errors import ConfigError
from quantrim.pruning import ChannelGroup, Examples, channel_groups, prune, score


class Tiny(nn.Module):
    """Two layers of scalars: everything can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 1, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, -1.0, 1.0, 3.0]).view(4, 1, 1, 1))
            self.second.weight.copy_(torch.tensor([2.0, 0.0, -4.0, 1.0]).view(1, 4, 1, 1))
            self.norm.weight.copy_(torch.tensor([0.5, -2.0, 0.1, 1.0]))
            self.norm.running_var.fill_(1 - self.norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


@pytest.fixture
def tiny() -> tuple[Tiny, ChannelGroup]:
    module = Tiny().eval()
    (group,) = channel_groups(module, torch.randn(2, 1, 2, 2)).groups
    return module, group


def scores(tiny: tuple[Tiny, ChannelGroup], criterion: str, **options) -> list[float]:
    module, group = tiny
    return score(module, [group], criterion, **options)[group.name].tolist()


def test_l1_adds_magnitudes_of_what_makes_and_reads_the_channel(tiny):
    assert scores(tiny, "l1") == [3.0, 1.0, 5.0, 4.0]


def test_l2_is_the_norm_over_both_layers(tiny):
    assert scores(tiny, "l2") == pytest.approx([5**0.5, 1.0, 17**0.5, 10**0.5])


def test_fpgm_uses_true_distances_so_that_opposite_filters_differ(tiny):
    # |1-(-1)| + |1-1| + |1-3| = 4; -1: 2 + 2 + 4 = 8; 3: 2 + 4 + 2 = 8
    assert scores(tiny, "fpgm") == [4.0, 8.0, 4.0, 8.0]


def test_bn_scale_is_the_magnitude_of_the_norms_weight(tiny):
    assert scores(tiny, "bn_scale") == pytest.approx([0.5, 2.0, 0.1, 1.0])


def test_taylor_is_the_first_order_change_when_a_channel_falls_silent(tiny):
    # the output is linear: channel c adds first[c] * norm[c] * second[c] * x; for the loss mean(output)
    # its gradient times weight is just that, here with x = 1 and x = -2
    batches = [torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), -2.0)]
    examples = Examples(batches, lambda module, x: module(x).mean())
    share = np.array([1 * 0.5 * 2, 0.0, 1 * 0.1 * -4, 3 * 1 * 1])
    assert scores(tiny, "taylor", examples=examples) == pytest.approx(np.abs(share) * 1.5, rel=1e-5)
    assert scores(tiny, "fisher", examples=examples) == pytest.approx(share**2 * (1 + 4) / 4, rel=1e-5)


def test_taylor_predicts_the_loss_of_masking_to_first_order():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).eval()
    (group,) = channel_groups(module, torch.randn(2, 3, 6, 6)).groups
    x = torch.randn(4, 3, 6, 6)
    found = score(module, [group], "taylor", examples=Examples([x], lambda m, b: m(b).mean()))[group.name]
    with torch.no_grad():
        whole = module(x).mean((1, 2, 3))
        for unit in range(8):
            weight = module[2].weight.clone()
            module[2].weight[:, unit] = 0
            changes = (whole - module(x).mean((1, 2, 3))).abs()
            assert float(changes.mean()) == pytest.approx(found[unit], rel=1e-3, abs=1e-6)
            module[2].weight.copy_(weight)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_scores_do_not_depend_on_how_samples_are_batched(criterion: str):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).eval()
    groups = channel_groups(module, torch.randn(2, 3, 6, 6)).groups
    x, y = torch.randn(12, 3, 6, 6), torch.randn(12)

    def loss(net: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (net(batch["x"]).mean((1, 2, 3)) - batch["y"]).square().mean()

    def scored(size: int) -> np.ndarray:
        batches = ({"x": a, "y": b} for a, b in zip(x.split(size), y.split(size), strict=True))
        return score(module, groups, criterion, examples=Examples(batches, loss))["0"]

    np.testing.assert_allclose(scored(1), scored(12), rtol=1e-4)
    np.testing.assert_allclose(scored(1), scored(5), rtol=1e-4)


def test_batches_that_can_be_read_once_are_kept():
    examples = Examples((torch.ones(2, 1) for _ in range(3)), lambda module, batch: batch.sum())
    assert [len(list(examples.samples())) for _ in range(2)] == [6, 6]
    odd = Examples([(torch.ones(2), torch.ones(3)), torch.tensor(1.0)], lambda module, batch: batch)
    assert len(list(odd.samples())) == 2  # no samples to be told apart


def test_random_follows_the_seed(tiny):
    assert scores(tiny, "random", seed=3) == scores(tiny, "random", seed=3) != scores(tiny, "random", seed=4)


def test_gradients_and_modes_are_left_as_they_were(tiny):
    module, group = tiny
    module.train().requires_grad_(False)
    score(module, [group], "taylor", examples=Examples([torch.ones(1, 1, 1, 1)], lambda m, x: m(x).mean()))
    assert module.training
    assert not module.first.weight.requires_grad
    assert module.first.weight.grad is None


def test_unknown_criterion_and_missing_examples_are_refused(tiny):
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        scores(tiny, "taylr")
    with pytest.raises(ConfigError, match="needs examples"):
        scores(tiny, "taylor")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda module, batch: module(batch[0]).mean().item(), "gives float"),
        (lambda module, batch: {"loss": module(batch[0]).mean()}, "gives dict"),
        (lambda module, batch: module(batch[0]).mean().detach(), "without gradient"),
    ],
)
def test_a_loss_without_gradient_is_refused_in_one_line(loss, words: str):
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match=words) as refusal:
        prune(module, images, ratio=0.3, criterion="taylor", examples=Examples([(images, images)], loss))
    assert refusal.value.field == "examples"


def test_a_protected_path_may_be_given_alone():
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3))
    prune(module, torch.randn(1, 3, 9, 9), ratio=0.2, protect="0")
    assert (module[0].out_channels, module[2].out_channels) == (16, 8)
