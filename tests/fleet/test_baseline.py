"""A baseline: what falls is said, what is noise is not, and what can't be compared is told."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.engines.race import speedup
from quantrim.errors import CheckpointError, ConfigError, DataError
from quantrim.fleet.baseline import Figures, Times, findings, read_baseline
from quantrim.post_training import ptq

TIMES = Times(fp32_ms=4.0, ms=2.0, ratio=2.0, low=1.95, high=2.05, processor="A", version="1", float_sha256="f")
FIGURES = Figures(
    int8_mac_share=0.99, faithful=True, score=0.97, score_high=0.99, sqnr_db=25.0, size_mb=4.0, times=TIMES
)


def fallen(now: Figures) -> list[str]:
    return [one.figure for one in findings(FIGURES, now) if one.fell]


def call(*words):
    return CliRunner().invoke(app, ["verify", *map(str, words)])


@pytest.fixture(scope="module")
def files(residual_onnx, images, tmp_path_factory):
    """A folder with a float model, its INT8 file, and samples."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(residual_onnx, folder / "net.onnx")
    np.save(folder / "images.npy", images)
    ptq(folder / "net.onnx", images, folder / "net.int8.onnx", engines=(), samples=12, accept="any")
    return folder


@pytest.fixture
def kept(files, tmp_path):
    """A copy of it with a baseline of the file."""
    folder = tmp_path / "kept"
    shutil.copytree(files, folder)
    judged = ("--data", folder / "images.npy", "--samples", 24, "--accept", "any")
    words = (folder / "net.int8.onnx", "--against", folder / "net.onnx", *judged)
    done = call(*words, "--baseline", folder / "baseline.json", "--write")
    assert done.exit_code == 0, (done.output, done.exception)
    return folder


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        ({"int8_mac_share": 0.9}, "INT8 coverage"),
        ({"faithful": False}, "faithful"),
        ({"score": 0.8, "score_high": 0.9}, "score"),
        ({"sqnr_db": 20.0}, "SQNR"),
        ({"size_mb": 4.1}, "size"),
        ({"times": TIMES.model_copy(update={"ratio": 1.5, "low": 1.45, "high": 1.55, "ms": 2.7})}, "speed"),
    ],
)
def test_each_figure_that_falls_is_named(change, figure):
    assert fallen(FIGURES.model_copy(update=change)) == [figure]


def test_better_or_within_the_noise_is_no_fall():
    assert not fallen(FIGURES)
    assert not fallen(FIGURES.model_copy(update={"int8_mac_share": 1.0, "sqnr_db": 40.0, "size_mb": 3.0}))
    noisy = TIMES.model_copy(update={"ratio": 1.7, "low": 1.4, "high": 2.0})
    assert not fallen(FIGURES.model_copy(update={"times": noisy})), "its interval reaches the baseline's"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"processor": "B"}, "another processor"), ({"version": "2"}, "another version"),
     ({"float_sha256": "g"}, "another float model")],
)  # fmt: skip
def test_speed_of_another_machine_is_not_compared_and_that_is_said(change, words):
    slow = TIMES.model_copy(update={"ratio": 1.0, "low": 0.9, "high": 1.1, **change})
    (speed,) = (
        one for one in findings(FIGURES, FIGURES.model_copy(update={"times": slow})) if one.fell is None
    )
    assert words in speed.why


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 0.5), st.floats(0.02, 0.4))
def test_a_slow_day_is_no_fall_and_a_slower_file_is(seed, busy, spread):
    """Both racers share the rounds, so what the machine does to both cancels."""
    generator = np.random.default_rng(seed)

    def raced(int8_ms: float, load: float) -> Times:
        day = (1 + load) * np.exp(spread * generator.standard_normal(101))
        times = [ms * day * np.exp(0.01 * generator.standard_normal(101)) for ms in (4.0, int8_ms)]
        found = speedup(*times)
        return TIMES.model_copy(update={"ratio": found.ratio, "low": found.low, "high": found.high})

    before = FIGURES.model_copy(update={"times": raced(2.0, 0.0)})
    same = FIGURES.model_copy(update={"times": raced(2.0, busy)})
    slower = FIGURES.model_copy(update={"times": raced(4.0, busy)})
    assert not [one for one in findings(before, same, slack=0.3) if one.fell]
    if spread < 0.1:
        assert [one.figure for one in findings(before, slower) if one.fell] == ["speed"]


def test_the_same_file_holds_its_baseline(kept):
    done = call("--baseline", kept / "baseline.json", "--slack", 0.5, "--json", kept / "v.json")
    assert done.exit_code == 0, done.output
    value = json.loads((kept / "v.json").read_text())
    assert value["command"] == "verify"
    assert value["files"][0]["findings"][0]["figure"] == "INT8 coverage"
    moved = kept.with_name("moved")
    kept.rename(moved)
    assert call("--baseline", moved / "baseline.json", "--slack", 0.5).exit_code == 0, "paths are relative"


def test_a_worse_file_ends_with_code_4_and_what_fell(kept):
    shutil.copy(kept / "net.onnx", kept / "net.int8.onnx")  # float after all
    done = call("--baseline", kept / "baseline.json", "--slack", 0.9)
    assert done.exit_code == 4
    assert "fell: net.int8.onnx" in done.output
    assert [line.split()[0] for line in done.output.splitlines() if "FELL" in line] == ["INT8"]
    assert call("--baseline", kept / "baseline.json", "--write").exit_code == 0
    assert read_baseline(kept / "baseline.json").files[0].figures.int8_mac_share == 0.0
    assert len(read_baseline(kept / "baseline.json").files) == 1


def test_a_baseline_that_is_missing_damaged_or_empty_is_one_line(kept, tmp_path):
    with pytest.raises(DataError, match=r"none\.json"):
        read_baseline(tmp_path / "none.json")
    value = json.loads((kept / "baseline.json").read_text())
    value["files"][0]["figures"]["size_mb"] = "4"
    (tmp_path / "b.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="size_mb"):
        read_baseline(tmp_path / "b.json")
    (tmp_path / "b.json").write_text('{"format": 7}')
    with pytest.raises(CheckpointError, match="of this version"):
        read_baseline(tmp_path / "b.json")
    (tmp_path / "b.json").write_text('{"format": 1, "files": []}')
    assert isinstance(call("--baseline", tmp_path / "b.json").exception, ConfigError)
    (kept / "net.int8.onnx").unlink()
    assert "no such file" in str(call("--baseline", kept / "baseline.json").exception)


def test_a_shape_survives_the_file(files, tmp_path):
    words = (files / "net.int8.onnx", "--against", files / "net.onnx", "--accept", "any", "--write")
    done = call(
        *words, "--baseline", tmp_path / "b.json", "--input-shape", "1,3,32,32", "--engine", "onnxruntime"
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert read_baseline(tmp_path / "b.json").files[0].subject.input_shape == (1, 3, 32, 32)
