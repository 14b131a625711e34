"""Nothing of the package runs what a file holds, and what it depends on is bounded."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from quantrim.checkpoints import read_state
from quantrim.errors import CheckpointError

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "quantrim").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Who may speak of pickle: its errors are caught, a restricted reader is made of it, or a process that this one
#: started sends it back what it sent.
PICKLE = {"checkpoints.py", "cifar.py", "parallel.py", "plan.py", "resolve.py", "probe.py"}
FORBIDDEN = (
    r"weights_only=False", r"allow_pickle=True", r"yaml\.(unsafe_load|full_load)\(", r"shell=True",
    r"os\.system\(",
    r"(?<![\w.])eval\(", r"(?<![\w.])exec\(", r"\bmarshal\b", r"\bshelve\b", r"\bdill\b", r"\bjoblib\b",
)  # fmt: skip


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_source_runs_what_a_file_or_a_user_says(pattern):
    hits = [path for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in hits] == []


def test_yaml_is_read_by_loaders_that_make_plain_data():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for loader in re.findall(r"yaml\.load\(.*?, (?:Loader=)?(\w+)\)", text):
            assert f"class {loader}(yaml.SafeLoader)" in text, path
        assert text.count("yaml.load(") == len(re.findall(r"yaml\.load\(.*?, (?:Loader=)?\w+\)", text)), path


def test_pickle_is_spoken_of_where_it_is_refused_alone():
    hits = {path.name for path in SOURCES if "pickle" in path.read_text(encoding="utf-8")} - {"shards.py"}
    assert hits <= PICKLE
    calls = [path.name for path in SOURCES if re.search(r"pickle\.loads?\(", path.read_text(encoding="utf-8"))]
    assert set(calls) <= {"parallel.py", "cifar.py"}


def test_torch_loads_weights_alone():
    for path in SOURCES:
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text(encoding="utf-8")):
            assert "weights_only=True" in call, path


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path):
    torch.save({"weight": _Runs(tmp_path / "ran")}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth"):
        read_state(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_dependency_has_a_lower_bound(requirement):
    assert re.search(r">=\d", requirement), requirement
