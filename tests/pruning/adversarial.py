"""Nets that break dependency analyses, each with what is expected of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: What becomes of a net: every inner channel can be pruned exactly, or some are frozen and say why.
EXACT = ""


def cbr(inner: int, outer: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


class Net(nn.Module):
    """Stem of 16 channels, something adversarial, and a head over ``width`` channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = cbr(3, 16)
        self.head = nn.Conv2d(width, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)))


class ChunkHalves(Net):
    """The second half is used before the first."""

    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([self.b(second), self.a(first)], 1)


class C2f(Net):
    """YOLO's block: both halves, and every bottleneck's output, are joined."""

    def __init__(self) -> None:
        super().__init__(16)
        self.cv1, self.m1, self.m2, self.cv2 = cbr(16, 16, 1), cbr(8, 8), cbr(8, 8), cbr(32, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.append(y[-1] + self.m1(y[-1]))
        y.append(self.m2(y[-1]))
        return self.cv2(torch.cat(y, 1))


class UnequalSplit(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = cbr(4, 8), cbr(12, 8)

    def middle(self, x: Tensor) -> Tensor:
        first, second = x.split([4, 12], 1)
        return torch.cat([self.a(first), self.b(second)], 1)


class ChannelShuffle(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv = cbr(16, 16, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.conv(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class BuiltInShuffle(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.shuffle, self.conv = nn.ChannelShuffle(4), cbr(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.shuffle(x))


class Flip(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv = cbr(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.conv(x.flip(1))


class Roll(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv = cbr(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x.roll(3, 1))


class PixelShuffle(Net):
    def __init__(self) -> None:
        super().__init__(8)
        self.conv, self.shuffle, self.after = cbr(16, 32), nn.PixelShuffle(2), cbr(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.after(self.shuffle(self.conv(x)))


class PixelUnshuffle(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.shuffle, self.conv = nn.PixelUnshuffle(2), cbr(64, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.shuffle(x))


class DepthMultiplier(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.wide, self.conv = nn.Conv2d(16, 48, 3, padding=1, groups=16), cbr(48, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.wide(x))


class GroupedConv(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = cbr(16, 32, groups=4), cbr(32, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Transposed(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.up = nn.ConvTranspose2d(16, 24, 2, 2)
        self.deep = nn.ConvTranspose2d(24, 24, 3, padding=1, groups=24)
        self.grouped = nn.ConvTranspose2d(24, 16, 1, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.grouped(self.deep(self.up(x)))


class CatFlattenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 8), cbr(3, 16)
        self.fc1, self.fc2 = nn.Linear(24 * 16, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(torch.cat([self.a(x), self.b(x)], 1), 4)
        return self.fc2(self.fc1(x.flatten(1)).relu())


class CatWithImage(Net):
    def __init__(self) -> None:
        super().__init__(19)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.stem(x)], 1))


class CatTwice(Net):
    def __init__(self) -> None:
        super().__init__(32)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class Attention(nn.Module):
    """One qkv projection, sizes taken from the tensor, a scale of its own."""

    def __init__(self, hard_coded: bool = False, fused: bool = False) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head, self.hard_coded, self.fused = nn.Linear(16, 4), hard_coded, fused

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(x)
        b, n, c = qkv.shape
        width = 8 if self.hard_coded else c // 6
        q, k, v = qkv.reshape(b, n, 3, 2, width).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * 0.35).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


class HardCodedView(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv = cbr(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return self.conv(x.view(n, 2, 8, h, w).flatten(1, 2))


class HardCodedSlice(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x[:, :8]), self.b(x[:, 8:])], 1)


class ComputedSlice(HardCodedSlice):
    def middle(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([self.a(x[:, :half]), self.b(x[:, half:])], 1)


class ConstantIndex(Net):
    def __init__(self) -> None:
        super().__init__(16)

    def middle(self, x: Tensor) -> Tensor:
        return x * x[:, 3:4]


class IndexTensor(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.register_buffer("order", torch.randperm(16, generator=torch.Generator().manual_seed(0)))

    def middle(self, x: Tensor) -> Tensor:
        return x[:, self.order]


class ShapeBranch(Net):
    """Another path is taken when the width is not the one written down (NASNet)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.adapt = cbr(16, 16), cbr(16, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return F.avg_pool2d(y, 3, 1, 1) if y.size(1) != 16 else y


class GroupNorm(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.fc1, self.fc2, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return self.head(x.mean(1))


class SqueezeExcite(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.down, self.up = nn.Linear(16, 8), nn.Linear(8, 16)

    def middle(self, x: Tensor) -> Tensor:
        gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return x * gate[:, :, None, None]


class SpatialAttention(Net):
    """A mean over channels gates positions (CBAM)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.conv, self.gate = cbr(16, 16), nn.Conv2d(2, 1, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        stats = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.gate(stats).sigmoid()


class ChannelSoftmax(Net):
    def __init__(self) -> None:
        super().__init__(16)

    def middle(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class GatedLinear(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv = cbr(16, 32)

    def middle(self, x: Tensor) -> Tensor:
        return F.glu(self.conv(x), 1)


class WeightTying(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b.weight = self.a.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class ReusedModule(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv = cbr(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class TrainOnlyHead(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv, self.aux = cbr(16, 16), nn.Sequential(cbr(16, 16), nn.Dropout(0.3), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        x = self.stem(x)
        return [self.head(self.conv(x)), self.aux(x)] if self.training else [self.head(self.conv(x))]


class PaddedShortcut(Net):
    def __init__(self) -> None:
        super().__init__(24)
        self.conv = cbr(16, 24)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.pad(x, (0, 0, 0, 0, 4, 4))


class PerChannelParameters(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.act, self.scale = nn.PReLU(16), nn.Parameter(torch.rand(16, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return self.act(x) * self.scale


class FixedBuffer(Net):
    """A buffer follows the channels, a plain tensor can't."""

    def __init__(self) -> None:
        super().__init__(16)
        self.register_buffer("mean", torch.rand(1, 16, 1, 1))
        self.plain = torch.rand(1, 16, 1, 1)
        self.conv = cbr(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x - self.mean) - self.plain


class UnknownOperator(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.conv = cbr(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x).sort(1).values


class Einsum(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.mix = nn.Parameter(torch.rand(16, 16))

    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", x, self.mix)


class DataDependent(Net):
    """torch.export refuses the whole; the blocks inside are still pruned."""

    def __init__(self) -> None:
        super().__init__(16)
        self.block = nn.Sequential(cbr(16, 32), cbr(32, 16))

    def middle(self, x: Tensor) -> Tensor:
        return self.block(x) if float(x.sum()) > -1e9 else x


class Interleaved(Net):
    """Even and odd channels take different ways."""

    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x[:, ::2]), self.b(x[:, 1::2])], 1)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rnn, self.head = cbr(3, 16), nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.stem(x).mean(2).transpose(1, 2))[0].mean(1))


@dataclass(frozen=True)
class Case:
    """A net, the layers that must be prunable, and words of the reason why others are not."""

    build: Callable[[], nn.Module]
    prunable: tuple[str, ...]
    reason: str = EXACT


CASES: dict[str, Case] = {
    "chunk_halves": Case(ChunkHalves, ("stem.0", "a.0", "b.0")),
    "c2f": Case(C2f, ("stem.0", "cv1.0", "m2.0", "cv2.0")),
    "unequal_split": Case(UnequalSplit, ("a.0", "b.0"), "unequal parts"),
    "channel_shuffle": Case(ChannelShuffle, ("stem.0", "conv.0")),
    "built_in_shuffle": Case(BuiltInShuffle, ("stem.0", "conv.0")),
    "flip": Case(Flip, ("stem.0",)),
    "roll": Case(Roll, ("conv.0",), "rolled"),
    "pixel_shuffle": Case(PixelShuffle, ("stem.0", "conv.0", "after.0")),
    "pixel_unshuffle": Case(PixelUnshuffle, ("stem.0", "conv.0")),
    "depth_multiplier": Case(DepthMultiplier, ("stem.0", "conv.0")),
    "grouped_conv": Case(GroupedConv, ("stem.0", "a.0", "b.0")),
    "transposed": Case(Transposed, ("stem.0", "up")),
    "cat_flatten_linear": Case(CatFlattenLinear, ("a.0", "b.0", "fc1")),
    "cat_with_image": Case(CatWithImage, ("stem.0",)),
    "cat_twice": Case(CatTwice, ("stem.0",)),
    "attention": Case(Attention, ("stem", "qkv")),
    "attention_hard_coded": Case(lambda: Attention(hard_coded=True), ("stem",), "hard-coded size"),
    "attention_fused": Case(lambda: Attention(fused=True), ("stem",), "heads of attention"),
    "hard_coded_view": Case(HardCodedView, ("conv.0",), "hard-coded size"),
    "hard_coded_slice": Case(HardCodedSlice, ("a.0", "b.0"), "hard-coded size"),
    "computed_slice": Case(ComputedSlice, ("stem.0", "a.0", "b.0")),
    "constant_index": Case(ConstantIndex, (), "constant"),
    "index_tensor": Case(IndexTensor, (), "index tensor"),
    "shape_branch": Case(ShapeBranch, ("stem.0",), "depends on a size"),
    "group_norm": Case(GroupNorm, ("stem.0", "conv")),
    "layer_norm": Case(LayerNorm, ("stem", "fc1")),
    "squeeze_excite": Case(SqueezeExcite, ("stem.0", "down")),
    "spatial_attention": Case(SpatialAttention, ("stem.0", "conv.0")),
    "channel_softmax": Case(ChannelSoftmax, (), "softmax"),
    "glu": Case(GatedLinear, ("stem.0", "conv.0")),
    "weight_tying": Case(WeightTying, ("stem.0",)),
    "reused_module": Case(ReusedModule, ("stem.0",)),
    "train_only_head": Case(TrainOnlyHead, ("stem.0", "conv.0", "aux.0.0")),
    "padded_shortcut": Case(PaddedShortcut, (), "padded"),
    "per_channel_parameters": Case(PerChannelParameters, ("stem.0",)),
    "fixed_buffer": Case(FixedBuffer, ("stem.0",), "fixed size"),
    "unknown_operator": Case(UnknownOperator, (), "no rule for operator"),
    "einsum": Case(Einsum, ("stem.0",)),
    "data_dependent": Case(DataDependent, ("block.0.0",), "the output of"),
    "interleaved": Case(Interleaved, ("stem.0", "a.0", "b.0")),
    "lstm": Case(Lstm, (), "no rule for operator"),
}

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
