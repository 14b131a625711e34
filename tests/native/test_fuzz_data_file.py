"""The native reader of data files under ASan and UBSan, at the size of a test."""

import re
import shutil

import pytest

from tests.native.fuzz_data_file import build, run


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_reader_of_data_files_takes_whatever_a_file_holds(tmp_path):
    build(tmp_path / "fuzz")
    read, refused = map(int, re.findall(r"(\d+) (?:read|refused)", run(tmp_path / "fuzz", 300, 0, tmp_path)))
    assert read + refused == 300 * 8
    assert read > 30
