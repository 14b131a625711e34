"""Results as the verbs write them, made through the verbs' own types so that they can't drift apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from quantrim.compression.result import Candidate, CompressResult, Layer
from quantrim.engines.bench import BenchRow, Latency
from quantrim.engines.inspect import inspect
from quantrim.files import write_json
from quantrim.post_training import PtqResult, ptq
from quantrim.pruning.groups.groups import Frozen
from quantrim.pruning.plan import empty_plan
from quantrim.pruning.pruning import GroupReport, PruningResult
from quantrim.pruning.sensitivity.curves import Curve, Point, Sensitivity
from quantrim.recipes.prune import PruneRun
from quantrim.recipes.qat import QatRun


@pytest.fixture(scope="session")
def quantized(residual_onnx, images, tmp_path_factory) -> PtqResult:
    return ptq(residual_onnx, images, tmp_path_factory.mktemp("r") / "int8.onnx")


@pytest.fixture(scope="session")
def ptq_value(quantized) -> dict:
    return quantized.to_json()


@pytest.fixture(scope="session")
def inspect_value(quantized, residual_onnx) -> dict:
    return inspect(quantized.output, against=residual_onnx).to_json()


@pytest.fixture(scope="session")
def compress_value() -> dict:
    """A search that kept one of two layers float."""
    times = Latency(2.0, 2.1, 2.2, 0.1)
    candidates = (
        Candidate("FP32", "f32", 93.0, 0.0, 3.4, (), times),
        Candidate("BF16", "bf16", 92.0, 1.0, 3.4),
        Candidate("INT8, mse + bias", "f32", 90.0, 3.0, 0.9),
        Candidate("INT8 but for 1 layer", "f32", 92.9, 0.1, 1.0, ("conv_2",), Latency(0.8, 0.8, 0.9, 0.05)),
    )
    layers = (Layer("conv_1", 1e-4, None), Layer("conv_2", 0.1, 0.2))
    return CompressResult(
        output="best.onnx",
        engine="openvino",
        target="openvino",
        metric="top1",
        images=10_000,
        max_drop=0.5,
        candidates=candidates,
        chosen=candidates[-1].name,
        layers=layers,
        verdict=None,
        notes=("Few pictures.",),
        seconds=12.0,
    ).to_json()


@pytest.fixture
def qat_file(quantized, tmp_path) -> Path:
    """qat.json with the training record beside it."""
    folder = tmp_path / "qat"
    run = QatRun(
        output=str(folder / "model_int8.onnx"),
        metric="top1",
        metrics={"fp32": 0.9123, "ptq": 0.8911, "qat": 0.9102, "exported": 0.9102, "engine": 0.9099},
        chosen="qat",
        best_iteration=200,
        equal_codes=0.9999,
        size_mb={"fp32": 3.3, "int8": 0.9},
        seconds=12.0,
        engines=quantized.engines,
    )
    history = [{"iteration": i, "loss": 1 / i, "lr": 0.1} for i in (50, 100, 150, 200)]
    history += [{"iteration": i, "top1": 0.9 + i / 2e4} for i in (100, 200)]
    write_json(folder / "qat.json", run.to_json())
    write_json(folder / "run.json", {"settings": {}, "result": {"history": history}})
    return folder / "qat.json"


@pytest.fixture
def prune_file(tmp_path) -> Path:
    """prune.json with sensitivity and the record of retraining beside it."""
    folder = tmp_path / "prune"
    result = PruningResult(
        plan=empty_plan(nn.Conv2d(3, 8, 3)),
        flops={"before": 2e9, "after": 1.4e9},
        params={"before": 2_000_000, "after": 1_500_000},
        requested=0.3,
        achieved=0.3,
        groups=tuple(GroupReport(f"layer{i}.conv", 64, 64 - i) for i in range(30)),
        frozen=(Frozen("head", "an output of the model", 19),),
        expected_loss=0.01,
    )
    metric = {"before": 0.91, "pruned": 0.80, "retrained": 0.905}
    run = PruneRun(str(folder), result, {"before": 10.0, "after": 8.0}, metric, "retrained", 1e-6, 90,
                   {"sensitivity": 5.0, "retraining": 60.0})  # fmt: skip
    curve = Curve((Point(0.25, 0.01, 0.001), Point(0.5, 0.04, 0.002)))
    sensitivity = Sensitivity({f"layer{i}.conv": curve for i in range(3)}, 0.3, 90, 5.0)
    write_json(folder / "prune.json", run.to_json())
    write_json(folder / "sensitivity.json", sensitivity.to_json())
    history = [{"iteration": 10, "loss": 0.5, "lr": 0.1}, {"iteration": 10, "mIoU": 0.9}]
    history += [{"iteration": 20, "loss": 0.4, "lr": 0.1}, {"iteration": 20, "mIoU": 0.905}]
    write_json(folder / "retraining" / "round_1" / "run.json", {"result": {"history": history}})
    torch.save({}, folder / "model.pth")
    return folder / "prune.json"


@pytest.fixture
def bench_value() -> list[dict]:
    def row(model: str, engine: str, precision: str, median: float) -> dict:
        latency = Latency(median, median * 1.05, median * 1.2, 0.1)
        return BenchRow(model, engine, precision, 1, 2, latency, 2e3 / median).to_json()

    return [
        row("a/fp32.onnx", "openvino", "f32", 8.0),
        row("a/fp32.onnx", "openvino", "bf16", 9.0),
        row("a/int8.onnx", "openvino", "f32", 2.0),
        row("a/int8.onnx", "onnxruntime", "f32", 4.0),
    ]
