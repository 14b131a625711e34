"""benchmarks/results.py: rows are kept, failures told, and every number of the page stands in a row."""

import json
import sys
from pathlib import Path

import pytest

from quantrim.engines.bench import bench
from quantrim.errors import EngineError
from quantrim.files import write_json

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import results
from results_page import page
from results_speed import NATIVE, Effort, native_ms, python_ms

NAMES = {"ptq_int8": "ptq int8", "fake_quant": "fake-quant", "openvino": "int8 openvino",
         "onnxruntime": "int8 onnxruntime"}  # fmt: skip


def metrics(key: str, **values: float) -> dict[str, dict[str, float]]:
    return {NAMES.get(name, name): {key: value, "top5": 0.99} for name, value in values.items()}


MACHINE = "a processor, 2 cores, 2026-01-01"
ROWS = {
    "speed/net/openvino/1": {
        "machine": MACHINE, "batch_size": 2, "runs": 50,
        "python_ms": {"fp32": 20.0, "int8": 5.0}, "native_ms": {"fp32": 10.0, "int8": 4.0},
    },
    "speed/net/onnxruntime/2": {
        "machine": MACHINE, "batch_size": 2, "runs": 30,
        "python_ms": {"fp32": 8.0, "int8": 4.0}, "native_ms": None,
    },
    "latency/seg/512x512/openvino/2": {
        "machine": MACHINE, "runs": 9, "python_ms": {"fp32": 200.0, "int8": 150.0}, "native_ms": None,
    },
    "pruned/seg/512x512/openvino/2": {
        "machine": MACHINE, "runs": 9, "python_ms": {"0": 7.0, "0.1": 5.6},
        "costs": {"0": {"flops": 2e9, "params": 1e6}, "0.1": {"flops": 1.8e9, "params": 9e5}},
    },
    "accuracy/net": {
        "machine": MACHINE, "images": 1000, "iterations": 60, "qat_iterations": 10,
        "metrics": metrics(
            "top1", fp32=0.9, ptq_int8=0.88, fake_quant=0.895, openvino=0.894, onnxruntime=0.8941
        ),
        "same_files": {
            "fp32": {"mb": 4.0, "openvino": 2.0, "onnxruntime": 3.0},
            "ptq int8": {"mb": 1.0, "openvino": 1.0, "onnxruntime": 2.0},
            "qat int8": {"mb": 1.0, "openvino": 0.5, "onnxruntime": 1.5},
        },
    },
    "miou/seg": {
        "machine": MACHINE, "images": 76, "iterations": 20, "size": 128,
        "metrics": metrics("mIoU", fp32=0.9, fake_quant=0.89, openvino=0.891, onnxruntime=0.892),
    },
    "agreement/net": {"machine": MACHINE, "images": 50,
                      "agreement": {"fake-quant": 0.96, "int8 openvino": 0.95, "int8 onnxruntime": 0.94}},
}  # fmt: skip


def test_the_page_computes_rates_ratios_and_differences_from_the_rows():
    text = page(ROWS, ["latency/a/b/c", "latency/a/b/d", "miou/x"])
    for line in (
        "| net | OpenVINO | 1 | 100.0 | 400.0 | 4.00 | 200.0 | 500.0 | 2.50 |",
        "| net | ONNX Runtime | 2 | 250.0 | 500.0 | 2.00 | - | - | - |",
        "| seg | OpenVINO | 2 | 200.0 | 150.0 | 1.33x | 25.00% | - | - | - | - | 9 |",
        "| seg | 512x512 | OpenVINO | 2 | 0.1 | 1.80 | 0.90 | 5.6 | 20.00% |",
        "| net | 90.00% | 88.00% | 89.50% | 89.40% | 89.41% | - | -0.10% |",
        "| net | ptq int8 | 88.00% | 1.000 (2.00x) | 2.000 (1.50x) | 1.00 |",
        "| net | qat int8 | 89.40% | 0.500 (4.00x) | 1.500 (2.00x) | 1.00 |",
        "| seg | 0.9000 | 0.8900 | 0.8910 | 0.8920 | -0.0090 |",
        "| net | 50 | 96.0% | 95.0% | 94.0% |",
        f"- {MACHINE}: 7 rows",
        "Rows: 2 of latency, 1 of miou",
    ):
        assert line in text
    assert "from the median of 30 to 50 runs" in text


def test_tables_without_rows_are_left_out():
    text = page({"miou/seg": ROWS["miou/seg"]}, [])
    assert "## III." in text
    assert all(title not in text for title in ("## I.", "## II.", "## IV.", "## V.", "Not measured"))


def test_every_line_of_a_table_has_as_many_cells_as_its_head():
    width = 0
    for line in page(ROWS, []).splitlines():
        cells = line.count("|") if line.startswith("|") else 0
        assert not cells or not width or cells == width
        width = cells


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """The command with two jobs of its own, one of which fails, and how often each ran."""
    runs = {"speed/a/openvino/1": 0, "speed/b/openvino/1": 0}

    def good():
        runs["speed/a/openvino/1"] += 1
        return {key: value for key, value in ROWS["speed/net/openvino/1"].items() if key != "machine"}

    def bad():
        runs["speed/b/openvino/1"] += 1
        raise EngineError("the engine says no.\nand more")

    names = dict(zip(runs, (good, bad), strict=True))
    monkeypatch.setattr(results, "jobs", lambda plan, effort, batch_size: names)

    def call(*words: str) -> int:
        base = ["results.py", "--folder", str(tmp_path / "rows"), "--output", str(tmp_path / "results.md")]
        monkeypatch.setattr(sys, "argv", [*base, *words])
        return results.main()

    return call, runs, tmp_path / "results.md"


def test_a_measured_row_is_kept_and_a_failed_one_is_told_and_tried_again(counted, capsys):
    call, runs, output = counted
    assert call() == 1
    assert "speed/b/openvino/1: failed: the engine says no." in capsys.readouterr().err
    assert "| a | OpenVINO | 1 | 100.0 | 400.0 | 4.00 |" in output.read_text()
    assert "Rows: 1 of speed" in output.read_text()
    assert call() == 1
    assert list(runs.values()) == [1, 2]


def test_again_measures_anew_and_only_chooses(counted):
    call, runs, _ = counted
    assert call("--only", "speed/a/*") == 0
    assert call("--only", "speed/a/*", "--again") == 0
    assert call("--only", "speed/a/*", "--page-only", "--again") == 0
    assert list(runs.values()) == [2, 0]
    assert call("--only", "nothing/*") == 2


def test_the_list_marks_what_is_there(counted, capsys):
    call, _, _ = counted
    call("--only", "speed/a/*")
    capsys.readouterr()
    assert call("--list") == 0
    assert capsys.readouterr().out.splitlines() == ["x speed/a/openvino/1", "  speed/b/openvino/1"]


def test_runs_fit_the_budget_and_stay_within_3_and_the_most():
    effort = Effort(budget=10.0, most=50, folder=Path())
    assert effort.runs(1.0) == (2, 10)
    assert effort.runs(100.0) == (1, 3)
    assert effort.runs(1e-3) == (10, 50)


def test_times_are_those_of_bench(residual_onnx):
    files = {"fp32": residual_onnx, "int8": residual_onnx}
    times, warmup, runs = python_ms(files, "openvino", 1, 2, Effort(0.2, 20, Path()))
    assert (warmup, runs) == (4, 20)
    (row,) = bench([residual_onnx], batch_size=2, repeat=20)
    assert 0.1 < times["fp32"] / row.latency_ms.median < 10


@pytest.mark.skipif(not NATIVE.exists(), reason="the native runner is not built")
def test_the_native_runner_times_the_same_files(residual_onnx):
    times = native_ms({"fp32": residual_onnx}, "openvino", 1, 2, warmup=1, runs=5)
    assert times is not None
    assert times["fp32"] > 0


def test_a_row_file_is_whole_json(counted, tmp_path):
    call, _, _ = counted
    call()
    (path,) = (tmp_path / "rows" / "rows").rglob("*.json")
    row = json.loads(path.read_text())
    assert row["python_ms"] == {"fp32": 20.0, "int8": 5.0}
    assert {"machine", "seconds"} <= row.keys()
    write_json(path, row)
