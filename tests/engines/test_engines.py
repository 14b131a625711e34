import numpy as np
import onnx
import pytest

from quantrim.engines import installed_engines, open_session, random_inputs
from quantrim.engines.base import LayerRun
from quantrim.engines.bench import bench, by_throughput, interleaved
from quantrim.engines.compare import compare
from quantrim.engines.race import Race, pace, speedup
from quantrim.engines.verdict import judge
from quantrim.errors import EngineError
from quantrim.graph import graph_from_onnx, normalize, random_feed, read_onnx

ENGINES = [engine for engine in installed_engines() if engine != "tensorrt"]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree_with_each_other(engine, residual_onnx, images):
    outputs = open_session(residual_onnx, engine).run({"image": images})
    reference = open_session(residual_onnx, "onnxruntime").run({"image": images})
    np.testing.assert_allclose(outputs["logits"], reference["logits"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_float_model_has_no_int8_share_and_every_layer_is_found(engine, residual_onnx, images):
    model = normalize(read_onnx(residual_onnx))
    graph = graph_from_onnx(model, random_feed(model))
    layers = open_session(residual_onnx, engine, threads=1).layers({"image": images[:1]})
    verdict = judge(graph, layers, engine, {})
    assert verdict.int8_mac_share == 0
    assert len(verdict.fallbacks) == 5
    assert sum(fallback.mac_share for fallback in verdict.fallbacks) == pytest.approx(1)


def test_a_share_counts_work_not_layers(residual_onnx):
    model = normalize(read_onnx(residual_onnx))
    graph = graph_from_onnx(model, random_feed(model))
    first = next(node for node in graph.nodes if node.weight)
    runs = [LayerRun((node.name,), "x", "f32" if node is first else "int8", "k", None) for node in graph.nodes]
    verdict = judge(graph, runs, "openvino", {first.name: "the user said so"})
    assert [(f.node, f.reason) for f in verdict.fallbacks] == [(first.name, "the user said so")]
    assert verdict.int8_mac_share == pytest.approx(1 - verdict.fallbacks[0].mac_share)


def test_bench_gives_a_row_for_each_model_engine_and_precision(residual_onnx):
    rows = bench([residual_onnx], engines=ENGINES, warmup=1, repeat=3, precisions=("f32", "bf16"))
    assert [(row.engine, row.precision) for row in rows] == [
        ("openvino", "f32"),
        ("openvino", "bf16"),
        ("onnxruntime", "f32"),
    ]
    assert set(rows[0].to_json()) >= {"model", "engine", "threads", "batch_size", "latency_ms", "throughput"}
    assert set(rows[0].to_json()["latency_ms"]) == {"median", "mean", "p90", "std"}


def test_throughput_mode_runs_streams_in_parallel(residual_onnx):
    row = bench([residual_onnx], warmup=0, repeat=2, threads=2, streams=2)[0]
    assert row.throughput > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_file_and_a_wrong_input_are_one_line_errors(engine, tmp_path, residual_onnx):
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match=r"bad\.onnx") as caught:
        open_session(tmp_path / "bad.onnx", engine)
    assert "\n" not in str(caught.value)
    session = open_session(residual_onnx, engine)
    with pytest.raises(EngineError, match="refused the input"):
        session.run({"image": np.zeros((1, 5, 32, 32), np.float32)})


def test_unknown_and_missing_engines_are_told_apart():
    with pytest.raises(EngineError, match="did you mean 'openvino'"):
        open_session("x.onnx", "openvin")
    with pytest.raises(EngineError, match="no such file"):
        open_session("nowhere.onnx", "openvino")


def test_dynamic_shapes_other_than_the_batch_must_be_given(residual_onnx):
    session = open_session(residual_onnx, "onnxruntime")
    assert random_inputs(session, batch_size=3)["image"].shape == (3, 3, 32, 32)
    with pytest.raises(EngineError, match="has shape"):
        random_inputs(session, shape=(1, 4, 32, 32))


def test_agreement_of_a_model_with_itself_is_perfect(residual_onnx, images):
    session = open_session(residual_onnx, "onnxruntime")
    (same,) = compare(session, session, [{"image": images}]).outputs
    assert (same.cosine, same.top1) == (pytest.approx(1), 1.0)
    assert same.sqnr_db >= 190


def raced(**medians):
    """A race of 25 rounds with 2 % of noise around the medians."""
    noise = np.random.default_rng(0).normal(1, 0.02, (4, 25))
    rows = {name: median * noise[place] for place, (name, median) in enumerate(medians.items())}
    return Race.of(rows)


def test_the_bad_news_on_speed_comes_first():
    assert pace(raced(fp32=1.0, int8=2.0), "X").startswith("INT8 does not pay on X")
    assert "Deploy BF16" in pace(raced(fp32=2.0, int8=2.0, bf16=1.0), "X")
    assert pace(raced(fp32=3.0, int8=1.0), "X").startswith("INT8 is 2.9")


def test_a_race_that_can_tell_nothing_says_no_difference():
    times = raced(fp32=1.0, int8=1.0)
    assert set(times.level) == {"fp32", "int8"}
    assert "no difference" in pace(times, "X")


def test_the_fourth_racer_may_win():
    times = raced(fp32=4.0, int8=2.0, bf16=3.0, int8_bf16=1.0)
    assert (times.fastest, times.level) == ("int8_bf16", ("int8_bf16",))
    assert pace(times, "X").startswith("INT8 with BF16 float parts is")
    assert pace(times.without_bf16(), "X").startswith("INT8 is 1.99x")


def test_the_interval_of_a_ratio_holds_the_truth_and_is_as_wide_as_the_noise():
    generator = np.random.default_rng(1)
    slow, fast = generator.lognormal(np.log(3), 0.1, 200), generator.lognormal(np.log(2), 0.1, 200)
    found = speedup(slow, fast)
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.12
    assert found.clear
    assert not speedup(slow, slow[::-1]).clear


def test_racers_take_turns_in_random_order(monkeypatch):
    order = []

    class Runner:
        def __init__(self, name):
            self.name = name

        def run(self, feed):
            order.append(self.name)

    interleaved([(Runner(name), {}) for name in "abc"], warmup=0, repeat=30)
    rounds = [tuple(order[start : start + 3]) for start in range(0, 90, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_file_is_explained_in_the_same_words_whatever_the_engine(engine, residual_onnx, tmp_path):
    whole, path = residual_onnx.read_bytes(), tmp_path / "m.onnx"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match=r"m\.onnx: not an ONNX file, or a truncated one"):
        open_session(path, engine)
    with pytest.raises(EngineError, match="this is a folder"):
        open_session(tmp_path, engine)
    onnx.save(onnx.load(residual_onnx), path, save_as_external_data=True, location="m.data", size_threshold=200)
    open_session(path, engine)
    (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes()[:-100])
    with pytest.raises(EngineError, match=r"m\.data have .* a truncated copy"):
        open_session(path, engine)
    (tmp_path / "m.data").unlink()
    with pytest.raises(EngineError, match=r"external data m\.data are missing"):
        open_session(path, engine)


def test_an_operator_that_openvino_lacks_is_named(residual_onnx, tmp_path):
    model = onnx.load(residual_onnx)
    model.graph.node[0].op_type = "Frobnicate"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="No conversion rule found for operations: Frobnicate"):
        open_session(tmp_path / "m.onnx")


def test_a_file_newer_than_onnx_runtime_says_what_to_do_and_no_source_lines(residual_onnx, tmp_path):
    model = onnx.load(residual_onnx)
    model.ir_version = 99
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineError, match=r"Unsupported model IR version.*ir_version = 10") as caught:
        open_session(tmp_path / "m.onnx", "onnxruntime")
    assert "onnxruntime_src" not in str(caught.value)


def test_a_session_of_onnx_runtime_leaves_the_cores_to_others_between_its_runs(residual_onnx):
    """Spinning threads of one session made the other's turn up to five times as long."""
    options = open_session(residual_onnx, "onnxruntime", threads=2).session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_the_settings_of_most_throughput_come_first(residual_onnx):
    tried = by_throughput(residual_onnx, "onnxruntime", threads=2, seconds=0.02)
    assert [one.rate for one in tried] == sorted((one.rate for one in tried), reverse=True)
    assert {one.streams for one in tried} == {1, 2}
    assert {one.batch_size for one in tried} <= {1, 2, 4, 8}
