"""Weight files: what loads, what is refused, and what the message says."""

import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import mnasnet0_5

from quantrim.errors import CheckpointError
from quantrim.vision.checkpoint import save_weights
from quantrim.vision.models import BiSeNetV2, load_weights, read_state


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "ddp", "safetensors"])
def test_a_state_dict_loads_from_every_usual_form(form, tmp_path):
    source, target = small(), small()
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "ddp":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state if form == "plain" else {form: state, "epoch": 3}, path)
    report = load_weights(target, path)
    assert report.complete
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


class Versioned(nn.Module):
    """A layer whose weights meant their square root before version 3, as it tells by its version."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 4.0))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        version = local_metadata.get("version")
        if version not in (1, 2, 3):
            raise ValueError(f"version should be 1, 2 or 3, not {version}")
        if version < 3:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] ** 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def versioned(version: int = 3) -> nn.Module:
    model = nn.Sequential(Versioned(), nn.BatchNorm2d(2))
    model[0]._version = version
    return model


@pytest.mark.parametrize("wrapper", ["none", "state_dict", "DataParallel", "AveragedModel", "trainer"])
def test_modules_learn_the_version_that_wrote_a_file(wrapper, tmp_path):
    path = tmp_path / "old.pth"
    source = versioned(2)
    if wrapper == "trainer":
        save_weights(source, path)
    elif wrapper == "state_dict":
        torch.save({"state_dict": source.state_dict(), "epoch": 3}, path)
    else:
        wrap = {"DataParallel": nn.DataParallel, "AveragedModel": AveragedModel}.get(wrapper, lambda m: m)
        torch.save(wrap(source).state_dict(), path)
    target = versioned()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AveragedModel counts its updates in an entry of its own
        load_weights(target, path, strict=wrapper != "AveragedModel")
    assert target[0].weight.tolist() == [16.0, 16.0]


def test_a_network_that_insists_on_its_version_loads_from_any_file(tmp_path):
    source, target = mnasnet0_5(num_classes=2), mnasnet0_5(num_classes=2)
    save_weights(source, tmp_path / "model.pth")
    save_file(source.state_dict(), tmp_path / "model.safetensors")  # a format without versions
    for name in ("model.pth", "model.safetensors"):
        with torch.no_grad():
            target.layers[0].weight.zero_()
        assert load_weights(target, tmp_path / name).complete
        assert torch.equal(target.layers[0].weight, source.layers[0].weight)


def test_a_version_that_the_network_does_not_know_is_one_clear_error(tmp_path):
    torch.save(versioned(4).state_dict(), tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match=r"Sequential refuses it: version should be 1, 2 or 3, not 4\."):
        load_weights(versioned(), tmp_path / "new.pth")


def test_a_strict_load_that_does_not_fit_names_the_shapes_and_changes_nothing(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)).state_dict(), tmp_path / "five.pth")
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1\.weight: file \(5, 4, 1, 1\), model \(2, 4, 1, 1\)"):
        load_weights(model, tmp_path / "five.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_lenient_load_takes_what_fits_and_reports_the_rest(tmp_path):
    state = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)).state_dict()
    torch.save(state | {"extra.weight": torch.zeros(1)}, tmp_path / "five.pth")
    model = small()
    with pytest.warns(UserWarning, match="2 entries fit; 1 unexpected"):
        report = load_weights(model, tmp_path / "five.pth", strict=False)
    assert report.loaded == ("0.weight", "0.bias")
    assert report.unexpected == ("extra.weight",)
    assert len(report.mismatched) == 2
    assert torch.equal(model[0].weight, state["0.weight"])


class Payload:
    def __reduce__(self):
        return (print, ("code in a weight file ran",))


def test_code_in_a_weight_file_does_not_run(tmp_path, capsys):
    torch.save({"weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: not a weight file that torch reads safely"):
        read_state(tmp_path / "evil.pth")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no weights here", pickle.dumps({"a": 1})])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_one_clear_error(content, suffix, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_entry_that_is_no_tensor_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such weight file"):
        read_state(tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(1), "note": "text"}, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match="entry 'note' is not a tensor"):
        read_state(tmp_path / "mixed.pth")


def test_pretrained_starts_a_segmentation_model_with_other_classes(tmp_path):
    source = BiSeNetV2(19)
    torch.save(source.state_dict(), tmp_path / "cityscapes.pth")
    with pytest.warns(UserWarning, match="mismatched"):
        model = BiSeNetV2(2, pretrained=tmp_path / "cityscapes.pth")
    assert torch.equal(model.detail[0][0].weight, source.detail[0][0].weight)
    assert model.head[2].out_channels == 2


def test_a_url_as_pretrained_says_to_download_it():
    with pytest.raises(CheckpointError, match=r"is a URL\. Download it"):
        BiSeNetV2(2, pretrained="https://example.org/model.pdparams")
