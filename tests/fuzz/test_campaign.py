"""The campaign at the size of a test: every kind of damaged input is read or refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZES = {"models": 51, "images": 70, "arrays": 40, "states": 60, "configurations": 40, "requests": 0}


def campaign(**sizes: int) -> subprocess.CompletedProcess[str]:
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, "-m", "tests.fuzz.campaign", *options, "--seed", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.timeout(900)
def test_every_kind_of_damaged_input_is_read_or_refused_in_one_line():
    done = campaign(**SIZES)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counted = {line.split(":")[0]: int(line.split(" of ")[1].split()[0]) for line in done.stdout.splitlines()}
    assert counted == {name: size for name, size in SIZES.items() if size}


@pytest.mark.slow
def test_the_service_outlives_damaged_requests():
    done = campaign(**dict.fromkeys(SIZES, 0) | {"requests": 300})
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
