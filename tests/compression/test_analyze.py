"""An analysis says what each layer costs, which must stay float for a metric, and goes on where it stopped."""

from __future__ import annotations

import numpy as np
import pytest

from quantrim.compression import GRID, Judge, Variant, analyze
from quantrim.engines import open_session
from quantrim.errors import CheckpointError, ConfigError


@pytest.fixture
def judge(residual_onnx, images) -> Judge:
    """100 points for FP32's outputs, less by the relative error."""
    wanted = open_session(residual_onnx, "onnxruntime").run({"image": images[:8]})["logits"]

    def points(session) -> float:
        made = session.run({session.inputs[0].name: images[:8]})[session.outputs[0].name]
        return 100 * max(0.0, 1 - float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted)))

    return Judge("closeness", 8, points)


def run(residual_onnx, images, judge, **options):
    return analyze(residual_onnx, images, engine="onnxruntime", judge=judge, samples=8, **options)


def test_a_target_between_int8_and_float_needs_the_fewest_float_layers(residual_onnx, images, judge):
    found = run(residual_onnx, images, judge, ranking="metric")
    assert found.float_points == 100
    (whole,) = found.int8_points.values()
    assert whole < 100
    assert [one.points for one in found.layers] == sorted(one.points for one in found.layers)
    target = (whole + 100) / 2
    reached = run(residual_onnx, images, judge, ranking="metric", target=target)
    assert reached.skip
    assert reached.points >= target
    assert run(residual_onnx, images, judge, target=whole).skip == ()
    assert run(residual_onnx, images, judge, target=100).skip is None


def test_the_estimators_are_compared_and_the_best_one_is_analysed(residual_onnx, images, judge):
    found = run(residual_onnx, images, judge, variants=(Variant("mse"), Variant("hist", hist_percent=0.5)))
    mse, clipped = found.int8_points.values()
    assert clipped < mse
    assert found.variant == "mse + bias"
    assert len({one.name for one in GRID}) == len(GRID)


def test_an_analysis_goes_on_from_its_answers_and_from_no_others(residual_onnx, images, judge, tmp_path):
    asked: list[str] = []
    options = {"state": tmp_path / "state.json", "on_answer": lambda question, answer: asked.append(question)}
    first = run(residual_onnx, images, judge, **options)
    count = len(asked)
    again = run(residual_onnx, images, judge, **options)
    assert len(asked) == count > len(first.layers)
    assert again.layers == first.layers
    with pytest.raises(CheckpointError, match="another model, other data or other settings"):
        run(residual_onnx, images[::-1].copy(), judge, **options)
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no state of an analysis"):
        run(residual_onnx, images, judge, **options)


def test_agreement_judges_where_there_are_no_labels(residual_onnx, images):
    found = analyze(residual_onnx, images, engine="onnxruntime", samples=8, judged=16)
    assert found.float_points == 100
    assert found.to_json()["command"] == "analyze"


@pytest.mark.parametrize("wrong", [{"ranking": "nois"}, {"target": 101.0}, {"variants": ()}])
def test_settings_are_checked_first(wrong):
    with pytest.raises(ConfigError):
        analyze("none.onnx", None, **wrong)
