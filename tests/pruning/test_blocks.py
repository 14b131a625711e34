"""Residual blocks go as a whole: exact, chosen by cost and loss, repeated by the plan, trained on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ConvNeXt, MobileNetV2, ResNet
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock
from torchvision.models.vision_transformer import VisionTransformer

from quantrim.pruning import (
    Job,
    Limits,
    Probe,
    load_pruned,
    measure,
    probe_without_labels,
    prune,
    save_pruned,
    score,
    survey,
)
from quantrim.pruning.cost import latency
from quantrim.pruning.cost.cost import full_widths, macs_model
from quantrim.pruning.sensitivity.curves import Curve, Point, Sensitivity

IMAGES = torch.randn(1, 3, 32, 32)
BLOCKS = Limits(blocks=True)


def resnet() -> nn.Module:
    return ResNet(BasicBlock, [2, 1, 1, 2], num_classes=10)


def mobilenet() -> nn.Module:
    return MobileNetV2(10, inverted_residual_setting=[[1, 16, 1, 1], [2, 24, 2, 2], [2, 32, 2, 2]])


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)], num_classes=10)


def vit() -> nn.Module:
    return VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


def timm_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_classes=10)


NETS = {
    resnet: ["layer1.0", "layer1.1", "layer4.1"],
    mobilenet: ["features.3", "features.5"],
    convnext: ["features.1.0", "features.1.1", "features.3.0"],
    vit: ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
    timm_vit: ["blocks.0", "blocks.1"],
}


def told(net: nn.Module, losses: dict[str, float], limits: Limits = BLOCKS) -> dict:
    """A survey, and a sensitivity as if these blocks had been measured and all else were dear."""
    looked = survey(net, IMAGES, limits=limits)
    curves = {
        group.name: Curve((Point(1.0, losses.get(group.name.removesuffix(" (block)"), 1e3), 0.0),))
        for group in looked.graph.groups
    }
    return {"surveyed": looked, "sensitivity": Sensitivity(curves, 1.0, 1, 0.0)}


@pytest.mark.parametrize("build", NETS, ids=lambda build: build.__name__)
def test_residual_blocks_of_real_models_are_found(build):
    torch.manual_seed(0)
    looked = survey(build(), IMAGES, limits=BLOCKS)
    assert [path for path in looked.graph.blocks] == NETS[build]
    assert {group.name for group in looked.graph.groups if group.is_block} == {
        f"{p} (block)" for p in NETS[build]
    }


def test_blocks_cost_what_is_in_them():
    net = resnet()
    graph = survey(net, IMAGES, limits=BLOCKS).graph
    cost, kept = macs_model(graph), full_widths(graph)
    kept[[group.name for group in graph.groups].index("layer1.1 (block)")] = 0
    assert float(cost(full_widths(graph))) - float(cost(kept)) == 2 * 64 * 64 * 9 * 8 * 8


def test_milliseconds_of_a_block_go_with_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency._Stopwatch, "_time", lambda self, model: 1.0)
    monkeypatch.setattr(latency, "measured_ms", lambda *given: 10.0)
    net = resnet()
    graph = survey(net, IMAGES, limits=BLOCKS).graph
    predicted = latency.latency_model(net, IMAGES, graph)
    names = [group.name for group in graph.groups]
    whole, without = full_widths(graph), full_widths(graph)
    without[names.index("layer1.1 (block)")] = 0
    narrower = without.copy()
    narrower[names.index("layer1.1.conv1")] = 8  # inside of it, where nothing costs any more
    assert float(predicted(whole)) == pytest.approx(10.0)
    assert float(predicted(narrower)) == float(predicted(without)) < 10.0


def test_a_block_that_costs_little_accuracy_goes_and_the_plan_repeats_it(tmp_path):
    net = resnet().eval()
    whole = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters())
    F.cross_entropy(net(IMAGES), torch.tensor([1])).backward()
    optimizer.step()
    before = copy.deepcopy(net)
    held = len(optimizer.param_groups[0]["params"])
    inside = len(list(net.layer1[1].parameters()))
    result = prune(
        net, IMAGES, ratio=0.05, optimizer=optimizer, followers=[whole], **told(net, {"layer1.1": 0.0})
    )
    assert result.blocks == ("layer1.1",) == tuple(result.to_json()["blocks"])
    assert isinstance(net.layer1[1], nn.Identity)
    assert isinstance(whole.layer1[1], nn.Identity)
    assert len(optimizer.param_groups[0]["params"]) == held - inside == len(optimizer.state)
    save_pruned(net, result.plan, tmp_path)
    torch.testing.assert_close(load_pruned(resnet(), tmp_path).eval()(IMAGES), net(IMAGES), rtol=0, atol=0)
    with torch.no_grad():  # the slow reference: the branch gives nothing
        for parameter in before.layer1[1].parameters():
            parameter.zero_()
        torch.testing.assert_close(net(IMAGES), before(IMAGES))
    F.cross_entropy(net(IMAGES), torch.tensor([1])).backward()
    optimizer.step()


def test_blocks_and_channels_go_together_and_rounds_make_one_plan(tmp_path):
    net = mobilenet()
    first = prune(net, IMAGES, ratio=0.1, **told(net, {"features.3": 0.0}))
    second = prune(net, IMAGES, ratio=0.2, limits=Limits(align=1, min_channels=1))
    save_pruned(net, first.plan.then(second.plan), tmp_path)
    again = load_pruned(mobilenet(), tmp_path)
    torch.testing.assert_close(again.eval()(IMAGES), net.eval()(IMAGES), rtol=0, atol=0)


def test_blocks_stay_unless_their_loss_is_known():
    net = resnet()
    assert not prune(net, IMAGES, ratio=0.3, limits=BLOCKS).blocks
    assert not prune(net, IMAGES, channel_ratio=0.6, limits=BLOCKS).blocks


def test_the_loss_without_a_block_is_measured():
    torch.manual_seed(0)
    net = resnet().eval()
    looked = survey(net, IMAGES, limits=BLOCKS)
    probe: Probe = probe_without_labels(net, [torch.randn(8, 3, 32, 32)])
    groups = tuple(group for group in looked.graph.groups if group.is_block)[:1]
    found = measure(Job(net, groups, score(net, groups, "l1"), probe, ratios=(0.1, 0.5)))
    (curve,) = found.groups.values()
    (point,) = curve.points
    without = copy.deepcopy(net)
    without.layer1[0] = nn.Identity()
    inputs, targets = probe.batches[0]
    with torch.no_grad():
        rise = probe.losses_of(without(inputs), targets) - probe.losses_of(net(inputs), targets)
    assert (point.ratio, point.loss) == (1, pytest.approx(float(rise.mean()), rel=1e-4))


class Doubtful(nn.Module):
    """No residual: what the second block gives is zero where its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.plain = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.signed = Added(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.signed(self.plain(self.stem(x)) - 1).mean((2, 3)))


class Added(nn.Module):
    """Residual, but a ReLU comes last: no identity where its input is negative."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


def test_what_is_no_identity_without_its_weights_stays():
    assert not survey(Doubtful(), IMAGES, limits=BLOCKS).graph.blocks


def test_costs_with_blocks_never_rise_when_more_goes():
    graph = survey(mobilenet(), IMAGES, limits=BLOCKS).graph
    cost, generator = macs_model(graph), np.random.default_rng(0)
    full = full_widths(graph)
    for _ in range(20):
        more = np.array([generator.integers(0 if g.is_block else 1, g.units + 1) for g in graph.groups])
        less = np.array([generator.integers(0 if g.is_block else 1, kept + 1) if kept else 0
                         for g, kept in zip(graph.groups, more, strict=True)])  # fmt: skip
        assert float(cost(less)) <= float(cost(more)) <= float(cost(full))
