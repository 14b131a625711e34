"""Options as people type them: both spellings, the contract's JSON, tables that are not cut."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.cli.calibration import parse_channels
from quantrim.cli.output import warn_of_scatter
from quantrim.engines.bench import Latency, scatter
from quantrim.errors import ConfigError


@pytest.mark.parametrize(
    "words",
    [
        ["train", "-c", "no.yml", "--save_dir", "x", "--keep_checkpoint_max", "1", "--use_vdl", "--do_eval",
         "--resume_model", "x/iter_1"],
        ["predict", "-c", "no.yml", "--model_path", "w.pth", "--image_path", "x"],
        ["evaluate", "-c", "no.yml", "--model_path", "w.pth", "--flip_horizontal"],
        ["export", "-c", "no.yml", "--model_path", "w.pth", "-o", "x.onnx", "--input_shape", "1,3,8,8"],
        ["quant", "-c", "no.yml", "--model_path", "w.pth", "--retraining_iters", "1", "--save_dir", "x"],
        ["prune", "-c", "no.yml", "--model_path", "w.pth", "--pruning_ratio", "0.2"],
    ],
)  # fmt: skip
def test_paddleseg_s_spelling_of_options_is_understood(words):
    done = CliRunner().invoke(app, words)
    assert "no.yml: no such configuration" in str(done.exception), done.output


def test_a_table_in_a_file_keeps_long_names_whole(residual_onnx):
    done = CliRunner().invoke(app, ["bench", str(residual_onnx), "--repeat", "1", "--warmup", "0"])
    assert str(residual_onnx) in done.stdout


def test_a_report_says_what_it_wrote(residual_onnx, tmp_path):
    bench = tmp_path / "bench.json"
    words = ["bench", residual_onnx, "--repeat", 1, "--warmup", 0, "--json", bench]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(bench), "-o", str(page), "--json", "-"])
    assert json.loads(done.stdout) == {"command": "report", "output": str(page), "results": [str(bench)]}


def test_one_number_counts_for_all_channels():
    assert parse_channels("0.5", "--mean") == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "words"), [("1,2", "has 2 numbers"), ("1,0,1", "above 0"), ("a", "no list of numbers")]
)
def test_channel_values_that_make_no_sense_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_channels(text, "--std")


@pytest.mark.parametrize(("p90", "warned"), [(1.1, False), (4.0, True)])
def test_times_of_a_busy_machine_carry_a_warning(capsys, p90, warned):
    quiet = Latency(median=2.0, mean=2.0, p90=2.0, std=0.0)
    ratio = scatter([quiet, Latency(median=1.0, mean=1.0, p90=p90, std=0.0)])
    warn_of_scatter(Console(width=200), ratio)
    assert ("4.0 times the median" in capsys.readouterr().out) is warned
