"""A configuration is data of a stranger: it is read within limits, and each refusal is one line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.errors import ConfigError
from quantrim.vision import document
from quantrim.vision.config import load_config
from quantrim.vision.document import read_document
from tests.vision.test_schema import GOOD

LAUGHS = "a0: &a0 [x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 20000 values"),
        (CHAIN, "more than 20000 values"),
        ("a: &a {b: 1}\nc: &c {<<: [*a, *a]}\n" + "d: {<<: [" + "*c, " * 7000 + "*c]}", "more than 20000"),
        ("seed: &s [*s]", ":1: no valid YAML (an alias holds itself)"),
        ("model: &m {type: UNet, backbone: *m}", "an alias holds itself"),
        ("model: " + "[" * 3000, "nested deeper than 40 levels"),
        ("- " * 3000 + "x", "nested deeper than 40 levels"),
        ("seed: " + "9" * 5000, "seed: a number of 5000 characters"),
        ("a: 1\nb: 2\na: 3\n", ":3: a: the key stands twice, first in line 1"),
        ("a: {b: 2, c: {d: 1, d: 1}}", ":1: a.c.d: the key stands twice"),
        ("a: 1\n'a': 2", ":2: a: the key stands twice"),
        ("a: !!python/object/apply:os.system [true]", "is not allowed"),
        ("a: !!binary eA==", "is not allowed"),
        ("a: !!int x", "'x' is no int"),
        ("a: 0x_", "'0x_' is no int"),
        ("? [a]\n: b", "a key that is no text"),
        ("a: *nowhere", "found undefined alias"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("a: \x00", "no valid YAML"),
        ("- a", "is a YAML mapping, this is a list"),
        ("", "is a YAML mapping, this is a NoneType"),
        ("a: " + "x" * 200_000, "larger than 128 kB"),
    ],
)
def test_a_hostile_file_is_one_line(tmp_path, text, words):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_document(tmp_path / "c.yml")
    assert words in str(caught.value)
    assert "c.yml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_long_chain_of_bases_is_told(tmp_path):
    for n in range(40):
        (tmp_path / f"b{n}.yml").write_text(f"_base_: b{n + 1}.yml\n")
    with pytest.raises(ConfigError, match=r"_base_: a chain of more than 16 files"):
        read_document(tmp_path / "b0.yml")


def test_dates_and_words_stay_text_and_merge_keys_merge(tmp_path):
    (tmp_path / "c.yml").write_text("base: &b {x: 1, y: 2001-13-99}\nnew: {<<: *b, x: 3, on: yes, 1: 2}\n")
    values = read_document(tmp_path / "c.yml").values
    assert values["new"] == {"x": 3, "y": "2001-13-99", "on": True, "1": 2}


def test_a_fault_is_told_at_its_line_of_the_file_where_it_stands(tmp_path):
    (tmp_path / "base.yml").write_text(GOOD.replace("momentum: 0.9", "momentum: fast"))
    (tmp_path / "c.yml").write_text("_base_: base.yml\nbatch_size: 2\n")
    with pytest.raises(ConfigError, match=r"base.yml:10: optimizer.momentum: is 'fast'"):
        load_config(tmp_path / "c.yml")
    (tmp_path / "c.yml").write_text("_base_: base.yml\nbatch_size: 0\n")
    with pytest.raises(ConfigError, match=r"c.yml:2: batch_size: is 0"):
        load_config(tmp_path / "c.yml", ["optimizer.momentum=0"])


PIECES = """batch_size iters model type backbone train_dataset transforms FCN Normalize mean _base_ _inherited_
lr_scheduler loss types coef . - : , [ ] { } &a *a << !!int 1 .nan 9e999 null true ' " # """


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["\n", "\t", *PIECES.split()]), max_size=30),
    st.integers(0, len(GOOD)),
    st.integers(0, 40),
)
def test_whatever_a_file_says_it_is_read_or_refused_in_one_line(tmp_path_factory, words, at, cut):
    path = tmp_path_factory.mktemp("fuzz") / "c.yml"
    path.write_text(GOOD[:at] + " ".join(words) + GOOD[at + cut :])
    try:
        load_config(path)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either ending is right


def test_limits_leave_room_for_real_configurations():
    assert document.MAX_DEPTH >= 20
    assert document.MAX_BYTES >= 64 * 1024
