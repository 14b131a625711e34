"""An engine whose answers another engine contradicts is told before its speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantrim.engines import trial
from quantrim.engines.verdict import OutputAgreement


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
    monkeypatch.setattr(trial, "agreement", lambda *_: (OutputAgreement("y", 1.0, elsewhere, None),))
    found = OutputAgreement("y", 0.5, here, None)
    text = trial._doubt("openvino", Path("f.onnx"), Path("q.onnx"), found, [{}])
    assert bool(text) is warned
    assert "openvino" not in asked
    if warned:
        assert text.startswith("Don't deploy this file on OpenVINO")
        assert "1.9 dB" in text or "12.0 dB" in text
