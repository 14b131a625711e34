"""Temporary folders and locks: gone after any end of a process, and never taken from a living one."""

import ast
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantrim.errors import DataError, QuantrimError
from quantrim.files import atomic_path, open_regular, read_json
from quantrim.scratch import claimed, claiming, scratch_folder, sweep

LONG_AGO = time.time() - 7200


def child(code: str, folder: Path) -> subprocess.Popen:
    """A process that prints a line once it is as far as it shall be, then waits."""
    program = f"import sys\nfrom quantrim.scratch import *\n{code}\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


HOLD = "with scratch_folder() as f:\n (f / 'x').write_text('1'); print(1, flush=True); time.sleep(60)"


def test_the_folder_of_a_killed_process_is_swept_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, living = (child(HOLD, tmp_path) for _ in range(2))
    dead.kill()
    dead.wait()
    try:
        assert len(list(tmp_path.iterdir())) == 2
        assert sweep() == 0  # both are young: their lock may still be on its way
        for folder in tmp_path.iterdir():
            os.utime(folder, (LONG_AGO, LONG_AGO))
        with scratch_folder() as mine:
            assert mine.is_dir()
            assert len(list(tmp_path.iterdir())) == 2  # mine and the living one's
    finally:
        living.kill()
        living.wait()


def test_a_foreign_folder_of_a_similar_name_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "quantrim-notes").mkdir()
    os.utime(tmp_path / "quantrim-notes", (LONG_AGO, LONG_AGO))
    assert sweep() == 0
    assert (tmp_path / "quantrim-notes").is_dir()


def test_a_folder_that_was_made_but_never_locked_goes(tmp_path, monkeypatch):
    """Its process was killed between the two."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Path(tempfile.mkdtemp(prefix="quantrim-"))
    assert sweep() == 0  # it may be about to be locked
    os.utime(made, (LONG_AGO, LONG_AGO))
    assert sweep() == 1
    assert not made.exists()


def test_a_second_process_is_refused_while_the_first_writes_and_let_in_afterwards(tmp_path):
    hold = "with claimed(sys.argv[1]):\n print(1, flush=True); time.sleep(60)"
    first = child(hold, tmp_path)
    with pytest.raises(QuantrimError, match=f"process {first.pid} is writing here"), claimed(tmp_path):
        pass
    first.kill()
    first.wait()
    with claimed(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_process_may_claim_a_folder_in_its_recipe_and_in_the_verb_it_calls(tmp_path):
    @claiming
    def verb(number: int, save_dir: Path) -> int:
        assert (tmp_path / ".quantrim.lock").is_file()
        return number

    with claimed(tmp_path):
        assert verb(3, tmp_path) == 3
        assert (tmp_path / ".quantrim.lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_many_threads_that_claim_and_release_leave_nothing(tmp_path):
    def work(number: int) -> None:
        with claimed(tmp_path / str(number % 2)):
            time.sleep(0.001)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert list(tmp_path.rglob("*")) == []


def test_a_process_of_a_group_other_than_the_first_claims_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with claimed(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantrimError, match="can't be written"), claimed(tmp_path / "file" / "x"):
        pass


def test_temporary_files_that_a_killed_writer_left_beside_the_target_go_with_the_next_write(tmp_path):
    for name, age in (
        (".m[1]-abcdefgh.onnx", LONG_AGO),
        (".m[1]-hgfedcba.onnx", None),
        (".other-abcdefgh.onnx", LONG_AGO),
    ):
        (tmp_path / name).write_text("")
        if age:
            os.utime(tmp_path / name, (age, age))
    with atomic_path(tmp_path / "m[1].onnx") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        "m[1].onnx",
        ".m[1]-hgfedcba.onnx",
        ".other-abcdefgh.onnx",
    }


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a": ' * 50_000, '{"format": 1' + "0" * 5000 + "}", "\ud800", "{'a': 1}"]
)
def test_json_that_is_none_is_one_short_line(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"a\.json: not a JSON file") as error:
        read_json(tmp_path / "a.json")
    assert len(str(error.value)) < 300


def test_only_regular_files_of_sane_size_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    refused = {tmp_path / "pipe": "regular", tmp_path / "large": "at most", Path("/dev/zero"): "regular"}
    for path, words in refused.items():
        with pytest.raises(DataError, match=words):
            open_regular(path, 4)


def test_every_recipe_that_writes_a_save_folder_claims_it():
    """A second run is refused while the first one writes; what others call within theirs claims none."""
    called_within = {"write_prediction", "write_boxes"}
    root = Path(__file__).parents[2] / "quantrim"
    unclaimed = []
    for path in [*(root / "recipes").rglob("*.py"), root / "vision" / "train.py"]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
                claims = any(isinstance(one, ast.Name) and one.id == "claiming" for one in node.decorator_list)
                if "save_dir" in names and not claims and node.name not in called_within:
                    unclaimed.append(f"{path.name}: {node.name}")
    assert unclaimed == []
