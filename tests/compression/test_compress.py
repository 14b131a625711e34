"""The search on small models, each file asked on its engine."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.compression import (
    Candidate,
    CompressResult,
    Offers,
    Variant,
    agreement_judge,
    compress,
    metric_judge,
)
from quantrim.engines import open_session
from quantrim.engines.bench import Latency, bench
from quantrim.errors import ConfigError, DataError, EngineError
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq

compress_module = sys.modules["quantrim.compression.compress"]


class Outlier(nn.Module):
    """The second convolution reads one channel a thousand times as large as the others, and all count alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)
        with torch.no_grad():
            self.first.weight[0] *= 3000
            self.second.weight[:, 0] /= 3000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


def outlier_file(path):
    """The network as a file."""
    torch.manual_seed(0)
    net = Outlier().eval()
    with torch.no_grad():  # all classes occur
        logits = net(torch.randn(64, 3, 32, 32))
        net.head.weight /= logits.std(0)[:, None]
        net.head.bias -= logits.mean(0)
        net.head.bias /= logits.std(0)
    export_onnx(net, torch.randn(1, 3, 32, 32), path)
    return path


@pytest.fixture(scope="module")
def outlier(tmp_path_factory):
    return outlier_file(tmp_path_factory.mktemp("compress") / "outlier.onnx")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).standard_normal((60, 3, 32, 32)).astype(np.float32)


class Upsampled(nn.Module):
    """A convolution and the bilinear resize behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(self.conv(x), scale_factor=4, mode="bilinear")


def test_rewrites_that_win_are_in_every_int8_candidate(pictures, tmp_path, monkeypatch):
    from quantrim.compression import Tuning
    from quantrim.rewrites import contest, tuner
    from quantrim.rewrites.duel import Duel

    monkeypatch.setattr(tuner, "_LEAST_SHARE", 0.0)
    monkeypatch.setattr(compress_module, "_RACE_SECONDS", 0.5)
    for module in (tuner, contest):
        monkeypatch.setattr(module, "duel", lambda *sessions, **settings: Duel(0.5, 0.4, 0.6, 2.0, 1.0))
    torch.manual_seed(0)
    export_onnx(Upsampled().eval(), torch.randn(1, 3, 32, 32), tmp_path / "net.onnx")
    result = compress(
        tmp_path / "net.onnx", pictures, tmp_path / "best.onnx", max_drop=100, engine="onnxruntime", samples=20,
        judged=8, recipes=(Variant("min_max", ()),), tuning=Tuning(30),
    )  # fmt: skip
    names = [one.name for one in result.candidates]
    assert names[:2] == ["FP32", "FP32 rewritten"]
    assert result.tuning["trials"][0]["rewrite"] == "resize as matmuls"
    assert result.candidates[1].drop < 1  # the same function


def test_the_front_holds_what_nothing_beats():
    def timed(name, milliseconds, drop):
        return Candidate(name, "f32", 90 - drop, drop, 1.0, latency_ms=Latency(milliseconds, 0, 0, 0))

    found = (timed("fp32", 9, 0), timed("worse", 6, 2), timed("int8", 3, 1), timed("fastest", 2, 4),
             Candidate("untimed", "f32", 90, 0, 1.0))  # fmt: skip
    result = CompressResult("o", "openvino", "openvino", "m", 1, 5, found, "int8", (), None, (), 1.0)
    assert [one.name for one in result.front] == ["fastest", "int8", "fp32"]


def test_a_time_may_be_picked(outlier, pictures, tmp_path):
    result = compress(
        outlier, pictures, tmp_path / "best.onnx", max_drop=0, engine="onnxruntime", samples=20, judged=20,
        recipes=(Variant("min_max"),), pick_ms=1e6,
    )  # fmt: skip
    assert all(one.latency_ms is not None for one in result.candidates)
    assert result.best.drop == min(one.drop for one in result.candidates)
    with pytest.raises(ConfigError, match="pick_ms is -1"):
        compress(outlier, pictures, tmp_path / "best.onnx", max_drop=0, pick_ms=-1)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_layer_that_int8_breaks_is_found_and_kept_float(engine, outlier, pictures, tmp_path):
    output, told = tmp_path / "best.onnx", []
    result = compress(
        outlier, pictures, output, max_drop=10, engine=engine, samples=20, judged=40,
        recipes=(Variant("min_max"),), on_candidate=told.append,
    )  # fmt: skip
    whole = next(one for one in result.candidates if one.name.startswith("INT8, "))
    assert whole.drop > 10
    worst = max(result.layers, key=lambda layer: layer.noise).name
    mixed = [one for one in result.candidates if one.float_layers and one.drop <= 10]
    assert mixed
    assert any(worst in one.float_layers for one in mixed)
    # ONNX Runtime's rules put a quantizer behind the layer that makes the tensor, too
    assert min(len(one.float_layers) for one in mixed) <= (1 if engine == "openvino" else 2)
    assert [one.name for one in told] == [one.name for one in result.candidates]
    assert len({one.name for one in result.candidates}) == len(result.candidates)
    assert result.best.drop <= 10
    fastest = min(one.latency_ms.median for one in result.candidates if one.drop <= 10)
    assert result.best.latency_ms.median <= 1.05 * fastest
    assert sum(one.drop <= 10 for one in result.candidates) == sum(
        one["within"] and one["latency_ms"] is not None for one in result.to_json()["candidates"]
    )
    assert any(one.latency_ms is not None and one.drop > 10 for one in result.candidates)  # for the front
    answers = open_session(output, engine).run({"input": pictures[:8]})["output"]
    expected = open_session(outlier, engine).run({"input": pictures[:8]})["output"]
    assert (answers.argmax(1) == expected.argmax(1)).mean() >= 0.75


def test_points_are_those_of_the_delivered_file(residual_onnx, images, tmp_path):
    output = tmp_path / "best.onnx"
    feeds = [{"image": images}]
    judge = agreement_judge(open_session(residual_onnx), lambda: feeds)
    result = compress(residual_onnx, images, output, max_drop=100, judge=judge, samples=8)
    assert result.best.points == judge.points(open_session(output, precision=result.best.precision))
    assert result.candidates[0].points == 100
    assert result.to_json()["metric"]["chosen"] == result.best.points


def test_a_drop_that_nothing_meets_leaves_the_float_model(residual_onnx, images, tmp_path):
    judge = metric_judge(lambda session: {"top1": 0.9 if _is_fp32(session) else 0.1}, "top1", 10)
    (tmp_path / "best.ranges.json").write_text("{}")
    result = compress(residual_onnx, images, tmp_path / "best.onnx", max_drop=1, judge=judge, samples=8)
    assert result.chosen == "FP32"
    assert result.verdict is None
    assert "FP32 stays" in result.headline
    assert not (tmp_path / "best.ranges.json").exists()  # those of an older INT8 file went
    (row,) = bench([tmp_path / "best.onnx"], repeat=1)
    assert row.throughput > 0


def _is_fp32(session) -> bool:
    return session.precision == "f32" and "residual" in str(session.path)


def test_the_same_pictures_for_both_are_named_as_such(residual_onnx, images, tmp_path):
    result = compress(residual_onnx, images, tmp_path / "best.onnx", max_drop=0.5, samples=len(images))
    assert any("same ones calibrate and judge" in note for note in result.notes)
    assert any("more than may be lost" in note for note in result.notes)


def test_a_module_is_taken_and_left_as_it_is(residual_net, images, tmp_path):
    before = {name: value.clone() for name, value in residual_net.state_dict().items()}
    result = compress(
        residual_net, images, tmp_path / "best.onnx", max_drop=100, samples=8, judged=8,
        example_inputs=torch.from_numpy(images[:1]),
    )  # fmt: skip
    assert result.candidates[0].name == "FP32"
    assert all(torch.equal(before[name], value) for name, value in residual_net.state_dict().items())


@pytest.mark.parametrize("drop", [-1, 101, float("nan")])
def test_a_drop_that_is_no_number_of_points_is_refused(drop, residual_onnx, images, tmp_path):
    with pytest.raises(ConfigError, match="points of accuracy"):
        compress(residual_onnx, images, tmp_path / "best.onnx", max_drop=drop)


def test_bad_data_leave_no_file(residual_onnx, tmp_path):
    with pytest.raises(DataError, match="NaN"):
        compress(residual_onnx, np.full((4, 3, 32, 32), np.nan, np.float32), tmp_path / "best.onnx", max_drop=1)
    assert not list(tmp_path.iterdir())


def test_json_has_every_candidate_with_its_verdict_and_plain_values(residual_onnx, images, tmp_path):
    import json

    result = compress(residual_onnx, images, tmp_path / "best.onnx", max_drop=100, samples=8, judged=8)
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert value["command"] == "compress"
    assert [one["name"] for one in value["candidates"]] == [one.name for one in result.candidates]
    assert all(one["within"] for one in value["candidates"])
    assert value["chosen"] == result.chosen
    assert dataclasses.asdict(result.best)["name"] == result.chosen


def test_training_is_asked_for_only_where_whole_int8_loses_too_much(residual_onnx, images, tmp_path):
    ptq(residual_onnx, images, tmp_path / "trained.onnx", target="openvino", engines=())
    made = []

    def train():
        made.append("qat")
        return tmp_path / "trained.onnx", None

    def judged(trained_points, whole_points):
        def points(session):
            name = str(session.path)
            if "trained" in name or session.precision == "bf16":
                return {"top1": trained_points}
            return {"top1": whole_points if "candidate" in name else 0.9}

        return metric_judge(points, "top1", 1000)

    def search(judge):
        return compress(
            residual_onnx, images, tmp_path / "best.onnx", max_drop=1, judge=judge, samples=8,
            offers=Offers(quantized=train),
        )  # fmt: skip

    assert "INT8 after QAT" not in [one.name for one in search(judged(0.9, 0.9)).candidates]
    assert made == []
    result = search(judged(0.895, 0.5))
    assert made == ["qat"]
    trained = next(one for one in result.candidates if one.name == "INT8 after QAT")
    assert trained.drop == pytest.approx(0.5)
    assert trained.latency_ms is not None


def test_pruned_models_are_tried_in_int8_until_one_loses_too_much(residual_onnx, images, tmp_path):
    asked = []

    def pruned(ratio):
        def make():
            asked.append(ratio)
            path = tmp_path / f"pruned_{ratio}.onnx"
            path.write_bytes(residual_onnx.read_bytes())
            return path

        return ratio, make

    judge = metric_judge(lambda one: {"top1": 0.1 if "pruned_0.4" in str(one.path) else 0.9}, "top1", 1000)
    result = compress(
        residual_onnx, images, tmp_path / "best.onnx", max_drop=1, judge=judge, samples=8,
        offers=Offers(pruned=[pruned(0.2), pruned(0.4), pruned(0.6)]),
    )  # fmt: skip
    assert asked == [0.2, 0.4]
    names = [one.name for one in result.candidates]
    assert any(name.startswith("pruned by 0.2, INT8") for name in names)
    assert not any(name.startswith("pruned by 0.4, INT8") for name in names)


def test_nonsense_is_refused_before_any_work(residual_onnx, images, tmp_path):
    with pytest.raises(ConfigError, match="recipes is empty"):
        compress(residual_onnx, images, tmp_path / "best.onnx", max_drop=1, recipes=())
    with pytest.raises(EngineError, match="did you mean 'openvino'"):
        compress(residual_onnx, iter(()), tmp_path / "best.onnx", max_drop=1, engine="openvin")


def test_of_equally_fast_files_the_most_accurate_is_chosen(residual_onnx, images, tmp_path, monkeypatch):
    judge = metric_judge(lambda one: {"top1": 0.9 if _is_fp32(one) else 0.899}, "top1", 1000)
    times = iter([np.full((1, 7), t) for t in (1.0, 5.0, 0.99, 0.99)])  # FP32, BF16, INT8, ... alone

    def timed(self, entries, repeat):
        alone = next(times, None)
        if alone is not None and len(entries) == 1:
            return alone
        return np.array([[1.0 if "FP32" in one.candidate.name else 0.99] * repeat for one in entries])

    monkeypatch.setattr(compress_module._Search, "_timed", timed)
    result = compress(residual_onnx, images, tmp_path / "best.onnx", max_drop=1, judge=judge, samples=8)
    assert result.chosen == "FP32"
