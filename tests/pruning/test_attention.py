"""Heads of attention go as a whole, alone or in lockstep with the embedding, and so do what counts them."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from quantrim.pruning import Limits, channel_groups, load_pruned, prune, save_pruned

IMAGES = torch.randn(1, 3, 32, 32)
FINE = Limits(align=1, min_channels=1)


class OwnAttention(nn.Module):
    """As most tutorials write it: the width of a head is the embedding's over the number of heads."""

    def __init__(self, dim: int = 24, num_heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class ThreeProjections(nn.Module):
    """Queries, keys and values of their own, sizes kept in a tuple."""

    def __init__(self, dim: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.shape = (heads, dim // heads)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (one(x).view(b, n, *self.shape).transpose(1, 2) for one in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Pooled(OwnAttention):
    """Two numbers are three by chance: only one of them counts heads."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = 3

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool1d(x.transpose(1, 2), self.taps, 1, self.taps // 2).transpose(1, 2)
        return super().forward(x)


class Classifier(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.attn, self.head = nn.Conv2d(3, 24, 8, 8), attention, nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attn(x)).mean(1))


def timm_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_classes=10, init_values=1e-2
    )


def timm_swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24, depths=(2,), num_heads=(3,),
        num_classes=10,
    )  # fmt: skip


def torchvision_vit() -> nn.Module:
    vit = VisionTransformer(32, 16, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=10)
    nn.init.normal_(vit.heads.head.weight)  # it starts at zero
    return vit


def torchvision_swin() -> nn.Module:
    return SwinTransformer([4, 4], 24, [2], [3], [4, 4], num_classes=10)


#: What builds a net, the layer whose channels are heads, and where the number of heads is told.
NETS = {
    "timm vit": (timm_vit, "blocks.0.attn.qkv", "blocks.0.attn.num_heads"),
    "timm swin": (timm_swin, "layers.0.blocks.1.attn.qkv", "layers.0.blocks.1.attn.num_heads"),
    "torchvision vit": (
        torchvision_vit,
        "encoder.layers.encoder_layer_1.self_attention",
        "encoder.layers.encoder_layer_1.self_attention.num_heads",
    ),
    "torchvision swin": (torchvision_swin, "features.1.1.attn.qkv", "features.1.1.attn.num_heads"),
    "own, over the embedding": (lambda: Classifier(OwnAttention()), "attn.qkv", "attn.num_heads"),
    "own, three projections": (lambda: Classifier(ThreeProjections()), "attn.q", "attn.shape.0"),
}


@pytest.mark.parametrize("name", NETS)
def test_heads_and_embedding_are_pruned_and_the_plan_repeats_it(name: str, tmp_path):
    build, layer, count = NETS[name]
    torch.manual_seed(0)
    net = build().eval()
    result = prune(net, IMAGES, channel_ratio=0.4, limits=FINE)
    assert [frozen.reason for frozen in result.frozen] == ["an output of the model"]
    touched = {member.tensor for member in result.plan.kept}
    assert count in touched
    assert any(name.startswith(f"{layer}.") for name in touched)
    again = load_pruned(build(), _saved(net, result.plan, tmp_path)).eval()
    torch.testing.assert_close(again(IMAGES), net(IMAGES), rtol=0, atol=0)
    F.cross_entropy(net.train()(torch.cat([IMAGES, IMAGES])), torch.tensor([1, 2])).backward()


def _saved(net: nn.Module, plan, folder):
    save_pruned(net, plan, folder)
    return folder


def test_a_head_removed_is_a_head_whose_output_is_zero():
    torch.manual_seed(0)
    net = timm_vit().eval()
    silent = copy.deepcopy(net)
    protected = ["patch_embed", "blocks.*.mlp", "blocks.1.attn"]
    (group,) = channel_groups(net, IMAGES, protect=protected).groups
    assert (group.units, group.channels_of_unit) == (3, 24)
    prune(net, IMAGES, channel_ratio=0.4, limits=FINE, protect=protected)
    assert net.blocks[0].attn.num_heads == 2
    removed = [  # the head whose rows of the projection are gone
        head
        for head in range(3)
        if not any(torch.equal(silent.blocks[0].attn.qkv.weight[8 * head], row)
                   for row in net.blocks[0].attn.qkv.weight[:16])
    ]  # fmt: skip
    assert len(removed) == 1
    with torch.no_grad():
        silent.blocks[0].attn.proj.weight[:, 8 * removed[0] : 8 * removed[0] + 8] = 0
    torch.testing.assert_close(net(IMAGES), silent(IMAGES), rtol=1e-5, atol=1e-6)


def test_a_number_that_equals_the_heads_by_chance_stays():
    net = Classifier(Pooled())
    result = prune(net, IMAGES, channel_ratio=0.4, limits=FINE)
    assert [frozen.layer for frozen in result.frozen] == ["head"]
    assert (net.attn.num_heads, net.attn.taps, net.stem.out_channels) == (2, 3, 16)


class Parts(nn.Module):
    """A split into unequal parts whose sizes stand in attributes, and a cut at another."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.first = [16, 32], 8
        self.stem, self.a, self.b = nn.Conv2d(3, 48, 3), nn.Conv2d(8, 24, 1), nn.Conv2d(32, 24, 1)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.stem(x), self.sizes, dim=1)
        return self.head(self.a(one[:, : self.first] * one[:, self.first :]) + self.b(other)).mean((2, 3))


def test_unequal_parts_with_sizes_in_attributes_are_pruned():
    net = Parts()
    result = prune(net, IMAGES, ratio=0.5, limits=FINE)
    assert not any("stem" in frozen.layer for frozen in result.frozen)
    assert net.stem.out_channels == sum(net.sizes) < 48
    assert net.sizes[0] == 2 * net.first == 2 * net.a.in_channels


class Written(nn.Module):
    """The number of heads is written in the forward, where nothing can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 3, 8).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 24))


def test_heads_written_in_a_forward_stay_with_a_reason():
    graph = channel_groups(Classifier(Written()), IMAGES)
    reasons = {frozen.layer: frozen.reason for frozen in graph.frozen}
    assert "hard-coded size in the forward of 'attn'" in reasons["attn.qkv"]
