"""``ptq`` with a clock: the fastest form is written, says how it wants to be run, and is run so."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from quantrim.engines import open_session
from quantrim.errors import ConfigError
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq, tuning
from quantrim.rewrites import Memory, contest, tuner
from quantrim.rewrites.duel import Duel

WIN, LOSS = Duel(0.5, 0.4, 0.6, 2.0, 1.0), Duel(1.5, 1.4, 1.6, 2.0, 3.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))

    def forward(self, x):
        return nn.functional.interpolate(self.body(x), scale_factor=4, mode="bilinear")


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    export_onnx(Net().eval(), torch.randn(1, 3, 16, 16), tmp_path / "net.onnx", dynamic_batch=False)
    return tmp_path / "net.onnx"


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def with_bf16(monkeypatch):
    """Let BF16 take part whatever the processor has."""
    monkeypatch.setattr(tuning, "engines_have_bf16", lambda engines: "openvino" in engines)


@pytest.fixture(autouse=True)
def every_site(monkeypatch):
    """Sites of any share of the time are tried, however small the nets of these tests."""
    monkeypatch.setattr(tuner, "_LEAST_SHARE", 0.0)


def clocks(monkeypatch, rewrites, precisions):
    monkeypatch.setattr(tuner, "duel", rewrites)
    monkeypatch.setattr(contest, "duel", precisions)


def always(answer):
    return lambda *sessions, **settings: answer


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def tuned(model, images, tmp_path, **options):
    return ptq(model, images, tmp_path / "q.onnx", target="openvino", tune_seconds=30, **options)


def test_a_rewrite_that_wins_is_in_the_int8_file(model, images, tmp_path, monkeypatch):
    def clock(champion, candidate, *feeds, **settings):
        """Rewritten files beat original ones; among precisions whole INT8 stays."""
        rewrites = ["MatMul" in operators(session.path) for session in (champion, candidate)]
        return WIN if rewrites == [False, True] else LOSS

    clocks(monkeypatch, always(WIN), clock)
    result = tuned(model, images, tmp_path, engines=("openvino",))
    assert operators(tmp_path / "q.onnx").count("MatMul") == 2
    assert "QuantizeLinear" in operators(tmp_path / "q.onnx")
    assert result.tuning["winner"] == "INT8"
    assert result.engines[0].verdict.int8_mac_share == 1.0  # interpolation is no layer of the model
    assert result.engines[0].agreement[0].sqnr_db > 20


def test_what_never_wins_changes_nothing(model, images, tmp_path, monkeypatch):
    clocks(monkeypatch, always(LOSS), always(LOSS))
    tuned(model, images, tmp_path, engines=("openvino",))
    ptq(model, images, tmp_path / "plain.onnx", target="openvino", engines=())
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["bf16", "f32"])
def test_where_float_is_faster_the_float_file_is_written(model, images, tmp_path, monkeypatch, precision):
    def clock(champion, candidate, *feeds, **settings):
        is_float = "QuantizeLinear" not in operators(candidate.path)
        return WIN if is_float and candidate.precision == precision else LOSS

    clocks(monkeypatch, always(LOSS), clock)
    result = tuned(model, images, tmp_path, engines=("openvino",))
    assert "QuantizeLinear" not in operators(tmp_path / "q.onnx")
    assert open_session(tmp_path / "q.onnx", "openvino").precision == precision
    assert result.tuning["winner"] == {"bf16": "BF16", "f32": "FP32"}[precision]
    assert "faster in" in result.engines[0].verdict.fallbacks[0].reason


def test_the_file_says_how_its_float_layers_run_and_every_session_obeys(model, images, tmp_path, monkeypatch):
    def clock(champion, candidate, *feeds, **settings):
        return WIN if candidate.precision == "bf16" and candidate.path == champion.path else LOSS

    clocks(monkeypatch, always(LOSS), clock)
    result = tuned(model, images, tmp_path, engines=("openvino",))
    assert result.tuning["winner"] == "INT8 and BF16"
    assert open_session(tmp_path / "q.onnx", "openvino").precision == "bf16"
    assert open_session(tmp_path / "q.onnx", "openvino", precision="f32").precision == "f32"
    assert open_session(tmp_path / "q.onnx", "onnxruntime").precision == "f32"  # it has no other


def test_with_real_clocks_the_answer_is_remembered(model, images, tmp_path):
    memory = Memory(tmp_path / "memory.json")
    first = tuned(model, images, tmp_path, engines=("onnxruntime",), memory=memory)
    content = (tmp_path / "q.onnx").read_bytes()
    again = tuned(model, images, tmp_path, engines=("onnxruntime",), memory=Memory(tmp_path / "memory.json"))
    assert again.tuning["trials"] == first.tuning["trials"]
    assert (tmp_path / "q.onnx").read_bytes() == content


def test_time_for_tuning_is_a_positive_number(model, images, tmp_path):
    with pytest.raises(ConfigError, match="tune_seconds is -1"):
        ptq(model, images, tmp_path / "q.onnx", tune_seconds=-1)


class Selecting(Net):
    """The best places of an enlarged map: the rewrites of its resize end where a selection begins."""

    def forward(self, x):
        rows = super().forward(x).flatten(2)
        _, best = rows[:, 0].topk(8)
        return rows.gather(2, best[:, None].expand(-1, 8, -1))


def test_a_tuned_model_is_judged_before_its_selection(monkeypatch, tmp_path, images):
    """Its rewrites keep the tensors that are selected from, or are refused."""
    clocks(monkeypatch, always(WIN), always(LOSS))
    torch.manual_seed(0)
    export_onnx(Selecting().eval(), torch.randn(1, 3, 16, 16), tmp_path / "net.onnx", dynamic_batch=False)
    result = tuned(tmp_path / "net.onnx", images, tmp_path, engines=("openvino",), refinements=())
    assert result.tuning["trials"]
    assert result.engines[0].agreement[0].sqnr_db > 15
