"""Asked, interrupted, damaged and ended in any order: a journal's answers are right, and none is made twice."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from quantrim.journal import journal_beside

NAMES = st.sampled_from("abcd")


class Runs(RuleBasedStateMachine):
    """Runs of one output, one after the other, each with its journal; ``kept`` is what they must find."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.output = self.folder / "m.onnx"
        self.kept: set[str] = set()
        self.start()

    def start(self):
        self.run = journal_beside(self.output)
        self.journal = self.run.__enter__()

    @rule(name=NAMES, with_file=st.booleans())
    def ask(self, name, with_file):
        key = f"{name}{with_file}"
        made = []

        def make():
            made.append(key)
            if with_file:
                self.journal.path(key, ".bin").write_text(key * 9)
            return {"it is": key}

        files = [self.journal.path(key, ".bin")] if with_file else []
        assert self.journal.answer(key, dict[str, str], make, files) == {"it is": key}
        assert bool(made) == (key not in self.kept)
        assert all(path.read_text() == key * 9 for path in files)
        self.kept.add(key)

    @rule()
    def interrupt(self):
        error = KeyboardInterrupt()
        self.run.__exit__(KeyboardInterrupt, error, None)
        self.start()

    @rule()
    def end(self):
        self.run.__exit__(None, None, None)
        self.kept.clear()
        assert list(self.folder.iterdir()) == []
        self.start()

    @rule(name=NAMES, with_file=st.booleans(), cut=st.integers(0, 40), answer=st.booleans())
    def damage(self, name, with_file, cut, answer):
        key = f"{name}{with_file}"
        path = self.folder / ".m.onnx.resume" / f"{key}{'.json' if answer or not with_file else '.bin'}"
        if key in self.kept:
            path.write_bytes(path.read_bytes()[:cut])
            whole = path.suffix == ".bin" and cut >= len(key * 9)
            self.kept -= set() if whole else {key}

    @invariant()
    def nothing_is_half_written(self):
        assert [path.name for path in self.folder.rglob(".*-????????*")] == []

    def teardown(self):
        self.run.__exit__(None, None, None)
        shutil.rmtree(self.folder)


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
