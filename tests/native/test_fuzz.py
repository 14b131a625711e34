"""What the native runner reads and writes itself under ASan and UBSan, at the size of a test."""

import re
import shutil

import pytest

from tests.native.fuzz import HARNESSES, build, run

#: Attempts a file, and how many of them succeed at least.
EXPECTED = {"fuzz_data_file": (8, 30), "fuzz_options": (4, 150)}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("harness", HARNESSES)
def test_the_native_runner_takes_whatever_a_file_or_a_command_line_holds(tmp_path, harness):
    build(tmp_path / "fuzz", harness)
    told = run(tmp_path / "fuzz", 300, 0, tmp_path, harness)
    read, refused = map(int, re.findall(r"(\d+) (?:read|refused)", told))
    attempts, least = EXPECTED[harness]
    assert read + refused == 300 * attempts
    assert read > least
