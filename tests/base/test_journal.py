"""A journal keeps answers while a run lasts, gives back those that hold, and is gone at the end."""

import json

import numpy as np
import pytest

from quantrim.errors import QuantrimError
from quantrim.journal import digest, journal_beside


def stopped(error):
    raise error


def interrupted(output, work, error=KeyboardInterrupt):
    """Run some work with the journal of an output, and be stopped behind it."""
    with pytest.raises(error), journal_beside(output) as journal:
        stopped(error(str(work(journal))))


def never():
    raise AssertionError("asked again")


def test_an_interrupted_run_is_not_asked_again_and_the_end_leaves_nothing(tmp_path):
    output, value = tmp_path / "m.onnx", {"a": [1.5, float(np.pi)]}
    interrupted(output, lambda journal: journal.answer("x", dict[str, list[float]], lambda: value))
    with journal_beside(output) as journal:
        assert journal.answer("x", dict[str, list[float]], never) == value
        assert journal.answer("y", int, lambda: 2) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_by_itself_leaves_nothing(tmp_path):
    interrupted(tmp_path / "m.onnx", lambda journal: journal.answer("x", int, lambda: 1), QuantrimError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": "x"}', '{"name": "y", "value": 1, "files": {}}',
                                    '{"name": "x", "value": "text", "files": {}}', "[" * 100_000])  # fmt: skip
def test_a_damaged_answer_is_made_again(tmp_path, damage):
    output = tmp_path / "m.onnx"
    interrupted(output, lambda journal: journal.answer("x", int, lambda: 1))
    next((tmp_path / ".m.onnx.resume").glob("*.json")).write_text(damage)
    with journal_beside(output) as journal:
        assert journal.answer("x", int, lambda: 7) == 7


@pytest.mark.parametrize("change", [lambda path: path.write_text("other"), lambda path: path.unlink()])
def test_an_answer_holds_while_its_files_do(tmp_path, change):
    def made(journal):
        path = journal.path("x", ".bin")
        return journal.answer("x", str, lambda: str(path.write_bytes(b"whole")), [path])

    output = tmp_path / "m.onnx"
    interrupted(output, made)
    interrupted(output, lambda journal: journal.answer("x", str, never, [journal.path("x", ".bin")]))
    change(tmp_path / ".m.onnx.resume" / "x.bin")
    with journal_beside(output) as journal:
        made(journal)
        assert journal.path("x", ".bin").read_bytes() == b"whole"


def test_digests_tell_values_types_and_places_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    one = np.arange(4, dtype=np.float32)
    different = [
        digest(one), digest(one.astype(np.int32)), digest(one.reshape(2, 2)), digest(one[::-1]), digest(b"1"),
        digest("1"), digest(1), digest("a", "b"), digest("ab"), digest(tmp_path / "a"), digest(),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert digest(one[::2]) == digest(one[::2].copy())
    assert json.loads(json.dumps(digest(one))) == digest(one)
