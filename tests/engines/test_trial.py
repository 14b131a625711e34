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
    """Both are heard on the same batches: an easy first sample speaks for no engine."""
    heard = []

    def compare(one, two, feeds):
        heard.append((one, two, feeds))
        there = (OutputAgreement("y", 1.0, here if one == "openvino" else elsewhere, None),)
        return Judgement("values", "", "faithful", True, (), (), there, 1, None)

    monkeypatch.setattr(trial, "open_session", lambda path, engine: engine)
    monkeypatch.setattr(trial, "compare", compare)
    feeds = [{"x": index} for index in range(6)]
    text = trial._doubt(
        "openvino", Path("f.onnx"), Path("q.onnx"), OutputAgreement("y", 0.5, here, None), feeds
    )
    assert bool(text) is warned
    assert all(one == two and len(batches) == 4 for one, two, batches in heard)
    if warned:
        assert text.startswith("it computes something else from this file than ONNX Runtime")
        assert "1.9 dB" in text or "12.0 dB" in text
