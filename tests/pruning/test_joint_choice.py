"""Widths chosen together: measurements survive a kill, and a collapse of accuracy is told with its ratio."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantrim.journal import journal_beside
from quantrim.pruning import Known, Limits, Probe, PruneConfig, prune, prune_as
from quantrim.pruning.together import Together

FINE = Limits(align=1, min_channels=1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 5)]
    return nn.Sequential(*layers).eval()


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 1, 8, 8, generator=generator), torch.randint(0, 5, (64,), generator=generator)


def probe() -> Probe:
    return Probe([samples()])


def widths(module: nn.Sequential) -> list[int]:
    return [layer.out_channels for layer in module if isinstance(layer, nn.Conv2d)]


def test_a_killed_choice_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured: list[bytes] = []
    whole = Together._measured

    def counted(self: Together, kept):
        if len(measured) == dies_after:
            raise KeyboardInterrupt
        if self.journal is not None:  # not where answers are counted
            measured.append(kept.tobytes())
        return whole(self, kept)

    def run() -> list[int]:
        module = net()
        with journal_beside(tmp_path / "widths") as journal:
            known = Known(probe=probe(), journal=journal)
            prune_as(module, samples()[0][:1], PruneConfig(0.4, limits=FINE), known)
        return widths(module)

    monkeypatch.setattr(Together, "_measured", counted)
    dies_after = 4
    with pytest.raises(KeyboardInterrupt):
        run()
    first, dies_after = list(measured), 10**6
    measured.clear()
    resumed = run()
    assert not set(first) & set(measured)
    assert not list(tmp_path.iterdir())  # nothing is left behind
    assert resumed == run()


def same_answers(one: nn.Module, other: nn.Module) -> float:
    inputs, _ = samples()
    with torch.no_grad():
        return float((one(inputs).argmax(1) == other(inputs).argmax(1)).double().mean())


def test_answers_that_stay_are_counted():
    module = net()
    before = copy.deepcopy(module)
    result = prune(module, samples()[0][:1], ratio=0.2, limits=FINE, probe=probe())
    assert result.cliff is not None
    assert result.cliff.same == pytest.approx(same_answers(before, module))
    assert result.to_json()["answers_kept"]["asked"] == 0.2


def test_a_ratio_beyond_the_collapse_is_told_with_the_one_before_it():
    module = net()
    with torch.no_grad():  # every class is told by every channel: none can be spared
        module[5].weight.normal_(0, 3)
        module[5].bias.normal_(0, 0.1)
    before = copy.deepcopy(module)
    with pytest.warns(UserWarning, match="accuracy collapses beyond"):
        result = prune(module, samples()[0][:1], ratio=0.93, limits=FINE, probe=probe())
    assert result.cliff is not None
    assert result.cliff.same == pytest.approx(same_answers(before, module))
    assert result.cliff.collapsed
    assert result.cliff.before is not None
    assert 0 <= result.cliff.before < 0.93
    assert f"beyond {result.cliff.before:.2f}" in result.cliff.sentence()


def test_models_that_tell_no_classes_have_no_cliff():
    module = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 1, 3)).eval()
    inputs, _ = samples()
    of_means = Probe([(inputs, inputs)], lambda outputs, _: outputs.flatten(1).mean(1))
    assert prune(module, inputs[:1], ratio=0.2, limits=FINE, probe=of_means).cliff is None
