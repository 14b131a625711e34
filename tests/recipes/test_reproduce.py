"""The manifest holds facts, and one code runs its rows: the embedded ones here, the others with their data."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import torchvision
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import ConfigError
from quantrim.files import read_json
from quantrim.recipes import fetch
from quantrim.recipes.loading import load
from quantrim.recipes.reproduce import read_table, reproduce, tables
from quantrim.vision.config import load_config
from quantrim.vision.shipped import shipped_file

ROWS = [pytest.param(row, id=f"{name}/{row.name}") for name in tables() for row in read_table(name).rows]


def test_the_embedded_rows_run_and_tell_where_every_number_comes_from(tmp_path):
    done = CliRunner().invoke(app, ["reproduce", "embedded", "--save-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    example, discs = read_json(tmp_path / "reproduce.json")["rows"]
    assert example["within"]
    assert example["faithful"]
    assert example["int8"] >= example["fp32"] - 0.02
    assert len(example["weights"]["sha256"]) == 64
    assert len(set(example["calibration"])) == 100
    assert discs["within"]
    assert discs["preprocessing"] == [{"type": "Normalize"}]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_a_configuration_a_licence_and_a_source(row):
    config = load_config(shipped_file("configs", row.config), row.set)
    assert config.spec.val_dataset is not None
    assert row.licence
    assert row.expected.source
    assert 0 < row.expected.value < 1
    assert (row.weights or row.train or row.shipped) is not None


def test_rows_of_torchvision_are_what_torchvision_says():
    rows = [row for row in read_table("imagenet").rows if row.name.startswith("torchvision_")]
    assert len(rows) == 7
    for row in rows:
        where = row.expected.source.removeprefix("torchvision.models.").split(",")[0].split(".")
        weights = getattr(getattr(torchvision.models, where[0]), where[1])
        assert row.weights == weights.url
        assert row.sha256 == weights.url.rsplit("-", 1)[1].removesuffix(".pth")
        assert 100 * row.expected.value == pytest.approx(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"])


def test_published_weights_fit_the_network_of_their_row(tmp_path):
    built = {
        "torchvision_mobilenet_v2": torchvision.models.mobilenet_v2,
        "timm_mobilenetv2_100": lambda: timm.create_model("mobilenetv2_100"),
    }
    for row in read_table("imagenet").rows:
        if row.name in built:
            state = built[row.name]().state_dict()
            torch.save(state, tmp_path / "weights.pth")
            config = load_config(shipped_file("configs", row.config), row.set)
            loaded = load(config, tmp_path / "weights.pth").model.state_dict()
            assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_what_is_missing_is_said_before_any_work(tmp_path):
    for words, message in (
        ({"table": "imagnet"}, "did you mean 'imagenet'"),
        ({"table": "imagenet"}, r"needs data: the folder of ImageNet; train/CLASS"),
        ({"table": "voc", "data": tmp_path / "none"}, "no such folder. It holds PASCAL VOC"),
        ({"table": "voc", "data": tmp_path, "rows": ["yolov3"]}, "legal: yolov3_mobilenet_v1"),
    ):
        with pytest.raises(ConfigError, match=message):
            reproduce(tmp_path / "out", **words)


def test_without_network_the_line_says_which_file_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fetch.urllib.request, "urlopen", _offline)
    data = tmp_path / "data"
    (data / "val").mkdir(parents=True)
    assert cv2.imwrite(str(data / "val/0.jpg"), np.zeros((8, 8, 3), np.uint8))
    (data / "val_list.txt").write_text("val/0.jpg 3\n")
    (row,) = reproduce(tmp_path / "out", "imagenet", data, rows=["torchvision_resnet50"])
    assert row.failure is not None
    assert "https://download.pytorch.org/models/resnet50-0676ba61.pth" in row.failure
    assert "give it as weights torchvision_resnet50=FILE" in row.failure
    assert "\n" not in row.failure


def _offline(*_: object, **__: object) -> None:
    raise OSError("no network")


def test_a_file_of_another_check_sum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fetch, "_download", lambda url, path: _write(path))
    digest = fetch.sha256_of(_write(tmp_path / "same"))
    assert fetch.local_file(f"https://host/model.pth#sha256={digest[:8]}").is_file()
    with pytest.raises(fetch.CheckpointError, match="another one than its sha256"):
        fetch.local_file("https://host/model.pth#sha256=00000000")


def _write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path
