"""What the campaigns and attacks have found, kept as files: each is read or refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.campaign import KINDS, RIGHT, run

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"


def replay(kind: str, kept: Path) -> None:
    """Give every file of a kind to what reads it, in forked children."""
    cases = [(path.stem, path.read_bytes()) for path in sorted((CORPUS / kind).iterdir())]
    assert len(cases) >= 4
    counts = run(KINDS[kind], cases, kept)
    assert counts.keys() <= RIGHT, counts


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_the_corpus_does_harm(kind, tmp_path):
    """In a process of its own: torch refuses to train in a fork of one that has trained already."""
    words = [sys.executable, "-m", "tests.fuzz.test_corpus", kind, str(tmp_path / "kept")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    wrong = sorted(path.name for path in (tmp_path / "kept").glob("*"))
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:], wrong)


if __name__ == "__main__":
    replay(sys.argv[1], Path(sys.argv[2]))
