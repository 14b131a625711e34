"""The changes that CONTRIBUTING.md shows apply to the sources, and their tests pass there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^### ([^\n]+)\n\n```diff\n(.*?)```\n\n```python\n# (\S+)\n(.*?)```", TEXT, re.S | re.M)


def test_an_estimator_a_criterion_a_target_and_a_model_are_shown() -> None:
    assert [title.split(":")[0] for title, *_ in SHOWN] == [
        "A range estimator",
        "A pruning criterion",
        "A target",
        "A model",
    ]


@pytest.mark.parametrize(
    ("title", "change", "place", "test"), SHOWN, ids=[one[0].split(":")[0] for one in SHOWN]
)
def test_the_change_applies_and_its_test_passes(
    title: str, change: str, place: str, test: str, tmp_path: Path
) -> None:
    for name in ("quantrim", "tests", "pyproject.toml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    applied = subprocess.run(
        ["git", "apply", "-C1", "-"], input=change, text=True, cwd=tmp_path, capture_output=True, check=False
    )
    assert applied.returncode == 0, applied.stderr
    file = tmp_path / place
    file.write_text(f"{file.read_text(encoding='utf-8')}\n\n{test}", encoding="utf-8")
    function = re.search(r"def (test_\w+)", test)
    assert function
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{place}::{function[1]}"]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
