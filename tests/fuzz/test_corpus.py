"""What the campaigns and attacks have found, kept as files: each is read or refused in one line."""

from pathlib import Path

import pytest

from tests.fuzz.campaign import KINDS, RIGHT, run

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_the_corpus_does_harm(kind, tmp_path):
    cases = [(path.stem, path.read_bytes()) for path in sorted((CORPUS / kind).iterdir())]
    assert len(cases) >= 4
    counts = run(KINDS[kind], cases, tmp_path / "kept")
    wrong = sorted(path.name for path in (tmp_path / "kept").glob("*"))
    assert counts.keys() <= RIGHT, (counts, wrong)
