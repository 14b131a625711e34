"""action.yml and Dockerfile: what can be said of them without GitHub and without a daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).splitlines()
    if line.strip()
]


def words_of(instruction: str) -> list[str]:
    return [rest for name, rest in LINES if name == instruction]


def test_the_action_has_what_github_asks_of_a_composite_one():
    assert {"name", "description", "inputs", "runs"} <= set(ACTION)
    assert ACTION["runs"]["using"] == "composite"
    assert all(one["description"] for one in [*ACTION["inputs"].values(), *ACTION["outputs"].values()])
    for step in STEPS:
        assert ("uses" in step) != ("run" in step)
        assert "run" not in step or step["shell"] == "bash"
        assert "uses" not in step or re.fullmatch(r"[\w.-]+/[\w.-]+@v?\d[\w.]*|.*@[0-9a-f]{40}", step["uses"])


def test_inputs_reach_scripts_by_the_environment_alone():
    """An expression inside a script would be a place to inject commands."""
    assert not [step["name"] for step in STEPS if "${{" in step.get("run", "")]
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(STEPS)))
    assert used == set(ACTION["inputs"])


@pytest.mark.parametrize("code", [0, 4])
def test_the_script_of_the_action_passes_the_verdict_on(code, tmp_path):
    """As GitHub runs ``shell: bash``; a stand-in tells what it was asked."""
    program = tmp_path / "bin" / "quantrim"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\necho the table\nexit {code}\n')
    program.chmod(0o755)
    (step,) = (step for step in STEPS if step.get("id") == "verify")
    environment = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "BASELINE": "models/base line.json; false",
        "SLACK": "0.1",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:5] == ["verify", "--baseline", "models/base line.json; false", "--slack", "0.1"]
    assert (tmp_path / "output").read_text() == f"result={tmp_path}/quantrim-verify.json\n"
    assert "the table" in (tmp_path / "summary").read_text()
    assert set(environment) - {"PATH", "RUNNER_TEMP"} >= set(step["env"])


def test_the_options_of_the_action_are_those_of_the_verb():
    import typer

    from quantrim.cli import app

    legal = {word for option in typer.main.get_command(app).commands["verify"].params for word in option.opts}
    (step,) = (step for step in STEPS if step.get("id") == "verify")
    assert set(re.findall(r"(?<=\s)--[a-z-]+", step["run"])) <= legal


def test_the_image_is_small_pinned_and_not_roots():
    bases = [rest.split()[0] for rest in words_of("FROM")]
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]*", base) for base in bases)
    assert words_of("USER")[-1] != "root"
    assert LINES[-2][0] == "ENTRYPOINT"
    assert json.loads(words_of("ENTRYPOINT")[0]) == ["quantrim"]
    last_stage = [name for name, _ in LINES][[name for name, _ in LINES].index("FROM", 1) :]
    assert "COPY" in last_stage
    for script in words_of("RUN"):
        assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
        if "apt-get install" in script:
            assert "--no-install-recommends" in script
            assert "rm -rf /var/lib/apt/lists/*" in script
        if "pip install" in script:
            assert "--no-cache-dir" in script


def test_everything_that_the_image_copies_is_sent_to_the_builder():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for rest in words_of("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in sent, name
    links = [path for path in (ROOT / "quantrim").iterdir() if path.is_symlink()]
    assert {path.resolve().name for path in links} <= set(copied), "the package's links lead to copied folders"
