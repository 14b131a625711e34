"""Nothing of the package runs what a file holds, and what it depends on is bounded."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from quantrim.checkpoints import read_state
from quantrim.errors import CheckpointError
from quantrim.files import sha256
from tests.audit import main, verdict

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "quantrim").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Who may speak of pickle, beside those who forbid it to numpy: its errors are caught, a restricted reader is
#: made of it, or a process that this one started sends it back what it sent.
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
    texts = {path.name: path.read_text(encoding="utf-8").replace("allow_pickle=False", "") for path in SOURCES}
    hits = {name for name, text in texts.items() if "pickle" in text}
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


def test_two_builds_of_the_wheel_are_the_same_bytes(tmp_path):
    """In other folders, at other times, from files of other dates, in another time zone."""
    digests = []
    for name, zone, date in (("first", "UTC", 1_500_000_000), ("second", "Asia/Tokyo", 1_600_000_000)):
        source = tmp_path / name
        source.mkdir()
        for one in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / one, source / one)
        for one in ("quantrim", "configs", "examples"):
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / one, source / one, ignore=ignored)
        for path in source.rglob("*"):
            os.utime(path, (date, date))
        options = ("-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path / name / "made")
        command = [sys.executable, "-m", "pip", "wheel", *map(str, options), str(source)]
        environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000", "TZ": zone}
        subprocess.run(command, check=True, env=environment, timeout=120, cwd=source)
        digests += [sha256(path) for path in (tmp_path / name / "made").glob("*.whl")]
    assert len(digests) == 2
    assert digests[0] == digests[1]


HOLE = {"name": "x", "version": "1", "vulns": [{"id": "CVE-1"}]}
CLEAN = {"name": "y", "version": "1", "vulns": []}
SKIPPED = {"name": "z", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("installed", "canary", "code", "words"),
    [
        ([CLEAN], [HOLE], 0, "1 packages, none known"),
        ([CLEAN, HOLE], [HOLE], 1, "vulnerable: x 1 (CVE-1)"),
        ([CLEAN, SKIPPED], [HOLE], 3, "nobody knows of 1 of 2 packages: z"),
        ([CLEAN], [SKIPPED], 3, "nothing was checked"),
        ([SKIPPED], [CLEAN], 3, "nothing was checked"),
        (None, [HOLE], 3, "pip-audit failed"),
        (None, None, 3, "nothing was checked"),
    ],
)
def test_an_audit_that_could_ask_nobody_does_not_pass(installed, canary, code, words):
    found, told = verdict(installed, canary)
    assert found == code
    assert words in told
    assert "\n" not in told


def test_an_audit_without_its_tool_does_not_pass(capfd):
    assert main([sys.executable, "-c", "raise SystemExit('no network')"]) == 3
    assert "nothing was checked" in capfd.readouterr().out
