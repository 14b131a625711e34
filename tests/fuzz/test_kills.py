"""The campaigns of kills, of signals and of full disks at the size of a test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", ["kills --kills 2 --verbs ptq", "stops --terms 1 --full 2 --verbs ptq"])
def test_verbs_that_are_killed_stopped_or_out_of_disk_leave_nothing_half_done(words):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *f"tests.fuzz.{words} --seed 3".split()]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "0 wrong" in done.stdout
