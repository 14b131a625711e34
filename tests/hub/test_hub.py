"""Model cards, and files on their way to a hub and back; the hub itself is never asked."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from quantrim.errors import ConfigError, DataError, QuantrimError
from quantrim.hub import pull, push, write_card
from quantrim.post_training import ptq


@pytest.fixture(scope="module")
def artefact(residual_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 file with its record, and what belongs to others beside it."""
    folder = tmp_path_factory.mktemp("artefact")
    data = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    result = ptq(residual_onnx, data, folder / "int8.onnx", samples=8)
    (folder / "int8.ptq.json").write_text(json.dumps(result.to_json()))
    (folder / "deploy.yaml").write_text("Deploy: {}\n")
    (folder / "other.onnx").write_bytes(b"")
    return folder / "int8.onnx"


class Folder:
    """A hub that is a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, []

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        self.made.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        shutil.copytree(folder_path, self.root / repo_id)
        return f"{repo_id}: {commit_message}"


def test_a_card_is_one_by_the_hubs_own_reader(artefact: Path, tmp_path: Path):
    path = write_card(artefact, base_model="me/net", licence="apache-2.0", output=tmp_path / "README.md")
    card = ModelCard.load(path)
    assert card.data.base_model == "me/net"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "onnx"
    assert {"quantrim", "int8", "openvino", "onnxruntime"} <= set(card.data.tags)
    record = json.loads(artefact.with_name("int8.ptq.json").read_text())
    assert "The verdict: faithful." in card.text
    for one in record["engines"]:
        assert f"| {one['verdict']['engine']} | yes | 100.0% |" in card.text
    assert f"{record['size_mb']['int8']:.2f} MB" in card.text


def test_metrics_stand_in_the_cards_index(artefact: Path, tmp_path: Path):
    shutil.copytree(artefact.parent, tmp_path / "copy")
    record = json.loads((tmp_path / "copy/int8.ptq.json").read_text()) | {
        "metric": {"fp32": 0.91, "int8": 0.905}
    }
    (tmp_path / "copy/int8.ptq.json").write_text(json.dumps(record))
    card = ModelCard.load(write_card(tmp_path / "copy/int8.onnx"))
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"metric of fp32": 0.91, "metric of int8": 0.905}


def test_a_push_takes_what_belongs_to_the_file(artefact: Path, tmp_path: Path):
    hub = Folder(tmp_path)
    assert "int8.onnx by quantrim ptq" in push(artefact, "me/net-int8", private=True, api=hub)
    assert hub.made == [("me/net-int8", True, True)]
    names = {path.name for path in (tmp_path / "me/net-int8").iterdir()}
    assert names == {"int8.onnx", "int8.ptq.json", "int8.ranges.json", "deploy.yaml", "README.md"}
    assert (tmp_path / "me/net-int8/int8.onnx").read_bytes() == artefact.read_bytes()


def test_what_is_not_faithful_stays_here(artefact: Path, tmp_path: Path):
    shutil.copytree(artefact.parent, tmp_path / "copy")
    record: dict[str, Any] = json.loads((tmp_path / "copy/int8.ptq.json").read_text()) | {"faithful": False}
    (tmp_path / "copy/int8.ptq.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="not faithful"):
        push(tmp_path / "copy/int8.onnx", "me/net", api=Folder(tmp_path / "hub"))
    assert "**not faithful**" in write_card(tmp_path / "copy/int8.onnx").read_text()


def test_a_file_without_a_record_is_refused(artefact: Path, tmp_path: Path):
    shutil.copy(artefact, tmp_path / "bare.onnx")
    with pytest.raises(DataError, match=r"no record of how it was made"):
        push(tmp_path / "bare.onnx", "me/net", api=Folder(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        push(tmp_path / "missing.onnx", "me/net", api=Folder(tmp_path))


@pytest.mark.parametrize("name", ["a/b/c", "", "no spaces", "-x/y"])
def test_names_of_repositories_are_checked_before_any_work(name: str, artefact: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="owner/name"):
        push(artefact, name, api=Folder(tmp_path))
    with pytest.raises(ConfigError, match="owner/name"):
        pull(name, tmp_path / "there", offline=True)


def cached(cache: Path, repo: str, files: dict[str, bytes]) -> None:
    """A repository in the layout of huggingface_hub's cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(snapshot.name)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def test_a_pull_comes_from_the_cache_when_offline(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cached(tmp_path / "cache", "me/net", {"int8.onnx": artefact.read_bytes(), "deploy.yaml": b"Deploy: {}\n"})
    cached(tmp_path / "cache", "me/bare", {"README.md": b"nothing"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (file,) = pull("me/net", tmp_path / "here", offline=True)
    assert file == tmp_path / "here/int8.onnx"
    assert file.read_bytes() == artefact.read_bytes()
    assert (tmp_path / "here/deploy.yaml").is_file()
    with pytest.raises(DataError, match=r"holds no \.onnx file"):
        pull("me/bare", tmp_path / "bare", offline=True)
    with pytest.raises(QuantrimError, match=r"me/gone: .*not|me/gone: the hub can't be reached"):
        pull("me/gone", tmp_path / "gone", offline=True)
    assert not (tmp_path / "gone").exists()


def test_a_hub_that_is_not_there_is_one_line(artefact: Path, monkeypatch: pytest.MonkeyPatch):
    class Gone(Folder):
        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
            raise ConnectionRefusedError("Connection refused")

    with pytest.raises(QuantrimError, match=r"me/net: the hub can't be reached: .*refused"):
        push(artefact, "me/net", api=Gone(Path()))
