"""Shipped files are found by name, copied whole, and never overwrite another file."""

from __future__ import annotations

import pytest

from quantrim.errors import ConfigError
from quantrim.vision.document import read_document
from quantrim.vision.shipped import copy_shipped, shipped, shipped_file

NAME = "quick_start/bisenet_optic_disc_512x512_1k"


@pytest.mark.parametrize("name", [NAME, f"{NAME}.yml", f"configs/{NAME}.yml", NAME.split("/")[1]])
def test_a_configuration_is_found_by_any_spelling_of_its_name(name):
    assert shipped_file("configs", name).read_text().startswith("batch_size")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'quick_start/bisenet_optic_disc_512x512_1k.yml'"):
        shipped_file("configs", "quick_start/bisenet_optic_disc_512x512.yml")


def test_copies_stand_where_the_documents_name_them(tmp_path):
    assert len(copy_shipped("configs", [], tmp_path)) == len(shipped("configs"))
    copy_shipped("configs", [NAME], tmp_path)  # the same file again
    (made,) = copy_shipped("configs", [NAME], tmp_path)
    made.write_text("mine: 1\n")
    with pytest.raises(ConfigError, match="another file stands there"):
        copy_shipped("configs", [NAME], tmp_path)
    assert made.read_text() == "mine: 1\n"


def test_a_missing_file_below_configs_is_the_shipped_one_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_document(f"configs/{NAME}.yml").values["iters"] == 1000
    for name in ("configs/none.yml", f"other/{NAME}.yml", "configs/../configs/quick_start/demo.yml"):
        with pytest.raises(ConfigError, match="no such configuration"):
            read_document(name)
    local = tmp_path / "configs" / f"{NAME}.yml"
    local.parent.mkdir(parents=True)
    local.write_text("iters: 7\n")
    assert read_document(f"configs/{NAME}.yml").values == {"iters": 7}
