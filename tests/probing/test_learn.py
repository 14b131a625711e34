"""Targets learned from the engines themselves, beside those that were written; nothing is raced here."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from quantrim.engines import EngineName
from quantrim.errors import CheckpointError, DataError, EngineError
from quantrim.graph import graph_from_onnx, normalize, read_onnx
from quantrim.placement import place
from quantrim.post_training import ptq
from quantrim.probing import Answer, learn_target, probes
from quantrim.targets import ONNXRUNTIME, OPENVINO, PORTABLE, Target, load_target, save_target, target_named


@pytest.fixture(scope="module")
def onnxruntime() -> Target:
    return learn_target("mine", ("onnxruntime",), race_seconds=0)[0]


@pytest.fixture(scope="module")
def openvino() -> Target:
    return learn_target("mine", ("openvino",), race_seconds=0)[0]


def test_onnxruntime_says_what_was_written_of_it(onnxruntime: Target):
    written = ONNXRUNTIME
    for rule in ("activation", "bias", "compute", "fuse", "needs_output", "carries_codes", "residual", "join"):
        assert getattr(onnxruntime, rule) == getattr(written, rule), rule
    assert onnxruntime.carry >= written.carry
    assert onnxruntime.follow >= written.follow
    assert not onnxruntime.shared_scale


def test_openvino_says_what_was_written_of_it(openvino: Target):
    written = OPENVINO
    for rule in ("activation", "bias", "compute", "fuse", "needs_output", "carries_codes", "residual"):
        assert getattr(openvino, rule) == getattr(written, rule), rule
    assert openvino.carry >= written.carry
    assert openvino.join >= written.join
    assert openvino.follow == written.follow
    assert "space_to_depth" not in openvino.carry


def test_a_rule_for_two_engines_holds_on_each_of_them(onnxruntime: Target, openvino: Target):
    answers: list[Answer] = []
    both, told = learn_target("mine", ("openvino", "onnxruntime"), race_seconds=0, on_answer=answers.append)
    assert answers == list(told)
    assert both.compute == PORTABLE.compute
    assert both.fuse == onnxruntime.fuse & openvino.fuse == PORTABLE.fuse
    assert both.needs_output == PORTABLE.needs_output
    assert both.carry <= onnxruntime.carry & openvino.carry
    against = next(a for a in told if a.rule == "fuse" and a.op == "elu")
    assert not against.holds
    assert "ONNX Runtime: " in against.why
    assert against.why in both.notes["fuse"]


def test_a_learned_target_places_a_model_and_its_file_is_faithful(
    onnxruntime: Target, residual_onnx: Path, tmp_path: Path
):
    save_target(onnxruntime, tmp_path / "mine.json")
    data = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    result = ptq(residual_onnx, data, tmp_path / "int8.onnx", target=str(tmp_path / "mine.json"))
    assert result.faithful
    assert result.engines[0].verdict.int8_mac_share == 1.0
    model = normalize(read_onnx(residual_onnx))
    graph = graph_from_onnx(model, {"image": data[:1]})
    mine, written = place(graph, onnxruntime), place(graph, ONNXRUNTIME)
    assert mine.int8_nodes == written.int8_nodes
    assert mine.groups == written.groups


def test_a_target_comes_back_from_its_file(tmp_path: Path):
    for target in (OPENVINO, ONNXRUNTIME, PORTABLE):
        save_target(target, tmp_path / "one.json")
        assert load_target(tmp_path / "one.json") == target
        assert target_named(str(tmp_path / "one.json")) == target


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda text: text.replace('"u8"', '"u4"'), "activation"), (lambda text: text[:-30], "not a JSON file"),
     (lambda text: text.replace('"fuse"', '"fuze"'), "fuse")],
)  # fmt: skip
def test_a_damaged_target_is_named(damage, message: str, tmp_path: Path):
    path = tmp_path / "one.json"
    save_target(OPENVINO, path)
    path.write_text(damage(path.read_text()))
    with pytest.raises((CheckpointError, DataError), match=message):
        target_named(str(path))


def test_an_engine_that_is_not_there_is_refused():
    engines: tuple[EngineName, ...] = ("tflite",)  # type: ignore[assignment]
    with pytest.raises(EngineError, match="tflite"):
        learn_target("mine", engines)


ASKED = [probes.linear(op) for op in ("conv", "linear", "conv_transpose")]
ASKED += [probes.matmul(), probes.swish(), probes.residual(), probes.plain()]
ASKED += [probes.of_two(op) for op in ("add", "concat", "mul", "div")]
ASKED += [probes.of_one(op, case) for op, case in (probes.FUNCTIONS | probes.AVERAGES | probes.MOVERS).items()]


@pytest.mark.parametrize("probe", ASKED, ids=lambda probe: probe.op)
def test_a_probe_is_a_model_whose_values_are_as_it_says(probe: probes.Probe):
    session = ort.InferenceSession(probe.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {node.name for node in probe.model.graph.node} >= {*probe.asked, *probe.layers}
    (first, *_) = session.run(None, probe.feed)
    assert np.isfinite(first).all()
    assert first.min() >= 0
