"""What the first screen of the README prints runs as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantrim.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/index.md"])
def test_the_first_lines_run_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"^```\n(pip install quantrim.*?)^```", text, re.S | re.M)
    assert block
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    monkeypatch.chdir(tmp_path)
    assert lines[0][:2] == ["pip", "install"]
    if page != "README.md":  # the same lines, once
        assert [line[:2] for line in lines[1:]] == [["quantrim", verb] for verb in ("example", "ptq", "report")]
        return
    for words in lines[1:]:
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
    assert "Faithful on OpenVINO" in (tmp_path / "example" / "report.html").read_text(encoding="utf-8")
    python = re.search(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert python
    exec(compile(python[1], page, "exec"), {"__name__": "readme"})
