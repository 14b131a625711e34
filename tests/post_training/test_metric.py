"""A metric of labelled data before and after, asked of the engine in the same call."""

from __future__ import annotations

import pytest

from quantrim.errors import ConfigError
from quantrim.post_training import ptq


def test_ptq_tells_the_metric_of_both_files(residual_onnx, images, tmp_path):
    seen: list[str] = []

    def evaluate(session) -> float:
        seen.append(session.engine)
        return 90.0 - len(seen)

    result = ptq(
        residual_onnx, images, tmp_path / "int8.onnx", samples=8, engines=("onnxruntime",), evaluate=evaluate
    )
    assert seen == ["onnxruntime", "onnxruntime"]
    assert result.to_json()["metric"] == {"fp32": 89.0, "int8": 88.0}


def test_a_metric_needs_an_engine(residual_onnx, images, tmp_path):
    with pytest.raises(ConfigError, match="evaluate needs an engine"):
        ptq(residual_onnx, images, tmp_path / "int8.onnx", samples=8, engines=(), evaluate=lambda session: 0.0)
