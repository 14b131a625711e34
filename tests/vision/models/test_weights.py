"""Weight files: what loads, what is refused, and what the message says."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quantrim.errors import CheckpointError
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
