"""Models and inputs that users really have: other signatures, types, wrappers, states; and broken ones."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from quantrim.errors import ModelError
from quantrim.pruning import Limits, load_pruned, prune, save_pruned, survey

ANY_WIDTH = Limits(align=1, min_channels=1)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Output = namedtuple("Output", ["logits", "scale"])


class Net(nn.Module):
    """Two convolutions and a head; what is odd is in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu()).relu()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class MappingOutput(Net):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.head(self.features(x)), "size": x.shape[-1]}


class NamedTupleOutput(Net):
    def forward(self, x: Tensor) -> Any:
        return Output(self.head(self.features(x)), 3)


class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: float = 1.0, flag: bool = True) -> Any:
        x = self.features(x) if y is None else self.features(x) + self.features(y)
        return self.head(x * scale if flag else x)


class Bytes(Net):
    """Turns pictures to single precision itself."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.float() / 255)


class ModulesInList(Net):
    """The list is not a ModuleList, but its layers are registered."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [self.a, self.norm, self.b]

    def forward(self, x: Tensor) -> Any:
        for layer in self.order:
            x = layer(x)
        return self.head(x)


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class LayerScale(Net):
    """A parameter and a buffer used directly; the parameter almost silences its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((16,), 1e-6))
        self.register_buffer("position", torch.randn(1, 16, 16, 16))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x) + self.position
        return self.head(x + self.gamma[:, None, None] * self.b(x))


class StandardisedWeights(Net):
    """Weights are normalised by way of another shape, as in NFNet."""

    def forward(self, x: Tensor) -> Any:
        weight = self.a.weight.flatten(1)
        weight = (weight - weight.mean(1, keepdim=True)).reshape_as(self.a.weight)
        return self.head(self.b(F.conv2d(x, weight, padding=1)))


class Tokens(nn.Module):
    """Integer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).relu().mean(1))


class Attention(nn.Module):
    """torch's own attention asks for the width that it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 4, 4)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.b, self.c, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.c(F.gelu(self.b(x)))).mean(1))


class Detector(nn.Module):
    """Keeps what scores high, so that sizes depend on values."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.net, self.threshold = Net(), threshold

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x).flatten()
        return scores[torch.nonzero(scores > self.threshold)[:, 0]] * 2


PRUNABLE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mapping_output": (MappingOutput, IMAGES),
    "named_tuple_output": (NamedTupleOutput, IMAGES),
    "two_inputs": (TwoInputs, (IMAGES, IMAGES)),
    "none_input": (TwoInputs, (IMAGES, None)),
    "keyword_inputs": (TwoInputs, {"x": IMAGES, "y": IMAGES, "scale": 0.5, "flag": False}),
    "byte_input": (Bytes, torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)),
    "integer_input": (Tokens, torch.randint(0, 50, (2, 7))),
    "modules_in_list": (ModulesInList, IMAGES),
    "without_gradients": (WithoutGradients, IMAGES),
    "layer_scale": (LayerScale, IMAGES),
    "standardised_weights": (StandardisedWeights, IMAGES),
    "attention": (Attention, IMAGES),
    "one_sample": (Net, IMAGES[:1]),
}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("name", PRUNABLE)
def test_odd_signatures_are_pruned(name: str):
    make, inputs = PRUNABLE[name]
    module = built(make)
    result = prune(module, inputs, ratio=0.25, limits=ANY_WIDTH)
    assert result.achieved >= 0.25
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    module(*(args[0] if args and isinstance(args[0], tuple) else args), **kwargs)


def test_a_layer_that_no_forward_reaches_is_listed_with_that_reason():
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Conv2d(16, 8, 1)

    result = prune(built(Unused), IMAGES, ratio=0.25, limits=ANY_WIDTH)
    assert {f.layer: f.reason for f in result.frozen}["decoder"] == "not reached by an exported graph"


def test_a_model_whose_sizes_depend_on_values_is_analysed_in_pieces():
    looked = survey(built(Detector), IMAGES, limits=ANY_WIDTH)
    assert {group.name for group in looked.graph.groups} == {"net.a", "net.b"}
    assert looked.graph.unexported[""] == "sizes of tensors depend on their values"


@pytest.mark.parametrize(
    ("spoil", "inputs", "words"),
    [
        (torch.jit.script, IMAGES, "TorchScript"),
        (lambda m: m.to("meta"), IMAGES, "'a.weight' is on the meta device"),
        (lambda m: nn.Sequential(nn.LazyConv2d(8, 1), m), IMAGES, "no shape yet"),
        (lambda m: m, IMAGES.numpy(), "hold no tensor"),
        (lambda m: m, IMAGES[:0], "is empty"),
        (lambda m: m, IMAGES * np.nan, "outputs of Net are NaN"),
        (lambda m: m, IMAGES[:, :2], "fails on the example inputs"),
        (lambda m: Detector(threshold=1e9), IMAGES, "nothing that could be compared"),
        (lambda m: nn.ReLU(), IMAGES, "no convolution or matrix product"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_one_line(spoil: Callable[[nn.Module], nn.Module], inputs, words):
    module = spoil(built(Net))
    with pytest.raises(ModelError, match=words) as caught:
        prune(module, inputs, ratio=0.25, limits=ANY_WIDTH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("criterion", ["l1", "fpgm", "bn_scale", "random"])
def test_weights_that_are_nan_are_named(criterion: str):
    module = built(Net)
    with torch.no_grad():
        module.b.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'b\.weight' holds NaN"):
        prune(module, IMAGES, ratio=0.25, criterion=criterion, limits=ANY_WIDTH)
    assert module.b.out_channels == 16


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        module = copy.deepcopy(built(Net))
    with pytest.raises(ModelError, match="inference_mode"):
        prune(module, IMAGES, ratio=0.25, limits=ANY_WIDTH)


def test_what_is_not_about_width_stays_as_it_was():
    module = built(Net).to(memory_format=torch.channels_last)
    module.a.requires_grad_(False)
    module.train()
    prune(module, IMAGES, ratio=0.25, limits=ANY_WIDTH)
    assert module.b.weight.is_contiguous(memory_format=torch.channels_last)
    assert not module.a.weight.requires_grad
    assert module.b.weight.requires_grad
    assert module.training


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 3, 20, 24)])
def test_the_pruned_model_takes_other_sizes_than_the_example(shape: tuple[int, ...]):
    module = built(Net)
    prune(module, IMAGES, ratio=0.25, limits=ANY_WIDTH)
    assert module(torch.randn(shape)).shape == (shape[0], 4, *shape[2:])


def test_torchs_moving_average_follows():
    module = built(Net)
    average = AveragedModel(module)
    prune(module, IMAGES, ratio=0.25, limits=ANY_WIDTH, followers=[average])
    average.update_parameters(module)
    assert average(IMAGES).shape == module(IMAGES).shape


def test_a_follower_of_another_structure_changes_nothing():
    module = built(Net)
    with pytest.raises(ModelError, match="not the model that was analysed"):
        prune(module, IMAGES, ratio=0.25, limits=ANY_WIDTH, followers=[built(Tokens)])
    assert module.a.out_channels == module.b.out_channels == 16


def test_factored_optimizer_state_starts_anew():
    module = built(Net)
    optimizer = torch.optim.Adafactor(module.parameters())
    module(IMAGES).square().mean().backward()
    optimizer.step()
    prune(module, IMAGES, ratio=0.25, limits=ANY_WIDTH, optimizer=optimizer)
    assert module.head.bias in optimizer.state
    optimizer.zero_grad()
    module(IMAGES).square().mean().backward()
    optimizer.step()


def test_modules_that_ask_for_the_version_of_their_state_are_loaded(tmp_path: Path):
    class Versioned(Net):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            assert metadata.get("version") == 2  # as MNASNet does
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    module = built(Versioned)
    save_pruned(module, prune(module, IMAGES, ratio=0.25, limits=ANY_WIDTH).plan, tmp_path)
    again = load_pruned(Versioned(), tmp_path).eval()
    assert torch.equal(again(IMAGES), module(IMAGES))
    again.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
