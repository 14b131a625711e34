"""An engine whose answers another engine contradicts is told before its speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantrim.engines import trial
from quantrim.judges import Judgement, OutputAgreement


@pytest.mark.parametrize(
    ("here", "elsewhere", "warned"),
    [(1.9, 36.2, True), (14.0, 15.0, False), (30.0, 60.0, False), (12.0, 19.9, False), (12.0, 20.1, True)],
)
def test_an_engine_is_doubted_where_another_one_does_far_better(monkeypatch, here, elsewhere, warned):
    asked = []

    def open_session(path: Path, engine: str):
        asked.append(engine)
        return engine

    monkeypatch.setattr(trial, "open_session", open_session)
    theirs = (OutputAgreement("y", 1.0, elsewhere, None),)
    judged = Judgement("values", "", "faithful", True, (), (), theirs, 1, None)
    monkeypatch.setattr(trial, "compare", lambda *_: judged)
    found = OutputAgreement("y", 0.5, here, None)
    text = trial._doubt("openvino", Path("f.onnx"), Path("q.onnx"), found, [{}])
    assert bool(text) is warned
    assert "openvino" not in asked
    if warned:
        assert text.startswith("it computes something else from this file than ONNX Runtime")
        assert "1.9 dB" in text or "12.0 dB" in text
