"""The native runner against Python's engines on the same files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantrim.engines import open_session
from quantrim.engines.bench import bench
from quantrim.post_training import ptq
from quantrim.vision.data.binary import evaluate_binary, read_binary
from quantrim.vision.evaluate import engine_predictor

ROOT = Path(__file__).parents[2]
SHAPE = (3, 32, 32)


@pytest.fixture(scope="session")
def binary() -> Path:
    """quantrim_bench, built once."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so the native runner can't be built")
    build = ROOT / "build" / "native"
    configure = ["cmake", "-S", "cpp", "-B", build, f"-DPython3_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", build, "-j", "2"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "quantrim_bench"


@pytest.fixture
def run(binary):
    """Runs the binary with options given as keywords and returns the finished process."""

    def call(*switches: str, **options: object) -> subprocess.CompletedProcess:
        words = [f"--{name}={value}" for name, value in options.items()]
        return subprocess.run([binary, *switches, *words], capture_output=True, text=True, timeout=120)

    return call


@pytest.fixture
def row(run):
    """The JSON row of a run that must succeed."""

    def call(*switches: str, **options: object) -> dict:
        done = run(*switches, json="-", **options)
        assert done.returncode == 0, done.stderr
        (only,) = json.loads(done.stdout)
        return only

    return call


def write_data(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.array([len(images)], "<i8").tofile(file)
        images.astype("<f4").tofile(file)
        labels.astype("<i8").tofile(file)
    return path


@pytest.fixture(scope="session")
def data(images, tmp_path_factory) -> Path:
    labels = np.random.default_rng(1).integers(0, 10, len(images))
    return write_data(tmp_path_factory.mktemp("data") / "set.bin", images, labels)


@pytest.fixture(scope="session")
def fixed_batch(residual_onnx, tmp_path_factory) -> Path:
    """The same classifier with a batch of 5 written into the file."""
    model = onnx.load(residual_onnx)
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].Clear()
        port.type.tensor_type.shape.dim[0].dim_value = 5
    path = tmp_path_factory.mktemp("models") / "fixed.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def with_labels(tmp_path_factory) -> Path:
    """A linear classifier that takes labels (N, 1) and returns logits, top-1 and top-5 of the batch."""
    weight = np.random.default_rng(2).standard_normal((3 * 32 * 32, 10)).astype(np.float32)

    def hits(k: int) -> list[onnx.NodeProto]:
        return [
            helper.make_node("TopK", ["logits", f"k{k}"], ["", f"best{k}"], axis=1),
            helper.make_node("Equal", [f"best{k}", "label"], [f"same{k}"]),
            helper.make_node("Cast", [f"same{k}"], [f"hit{k}"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"hit{k}", "one"], [f"image{k}"], keepdims=0),
            helper.make_node("ReduceMean", [f"image{k}"], [f"acc{k}"], keepdims=0),
        ]

    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
            *hits(1),
            *hits(5),
        ],
        "labelled",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10]),
            helper.make_tensor_value_info("acc1", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("acc5", TensorProto.FLOAT, []),
        ],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
            onnx.numpy_helper.from_array(np.array([1]), "k1"),
            onnx.numpy_helper.from_array(np.array([5]), "k5"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path_factory.mktemp("models") / "labelled.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("streams", [1, 2])
def test_outputs_equal_those_of_python(row, residual_onnx, data, images, tmp_path, engine, streams):
    dump = tmp_path / "out.bin"
    row(infer_model=residual_onnx, infer_data=data, engine=engine, batch_size=5, streams=streams,
        num_threads=streams, dump_outputs=dump)  # fmt: skip
    expected = open_session(residual_onnx, engine, threads=1).run({"image": images})["logits"]
    np.testing.assert_allclose(np.fromfile(dump, "<f4").reshape(-1, 10), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("batch", ["open", "fixed"])
def test_accuracy_counts_each_image_once_however_the_set_is_cut(
    row, residual_onnx, fixed_batch, data, engine, batch
):
    model = residual_onnx if batch == "open" else fixed_batch
    found = row(infer_model=model, infer_data=data, engine=engine, batch_size=5, repeat=2)
    images, labels = read_binary(data, SHAPE)
    expected = evaluate_binary(engine_predictor(open_session(residual_onnx, engine)), images, labels)
    assert found["images"] == len(labels) == 24
    assert (found["top1"], found["top5"]) == pytest.approx((expected["top1"], expected["top5"]), abs=1e-9)
    assert found["runs"] == 2 * 4  # latency speaks of the full batches


def test_an_accuracy_layer_gets_the_labels_and_agrees_with_the_logits(row, run, with_labels, data):
    layered = row("--with_accuracy_layer", infer_model=with_labels, infer_data=data, batch_size=5)
    session = open_session(with_labels)
    images, labels = read_binary(data, SHAPE)
    logits = session.run({"image": np.array(images), "label": np.array(labels)[:, None]})["logits"]
    assert layered["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    refused = run("--with_accuracy_layer=false", infer_model=with_labels, infer_data=data)
    assert refused.returncode == 1
    assert "Pass --with_accuracy_layer" in refused.stderr


def test_the_json_has_the_keys_of_quantrim_bench(row, residual_onnx):
    found = row(infer_model=residual_onnx, batch_size=2, iterations=3, repeat=4, warmup_size=2)
    (python,) = bench([residual_onnx], batch_size=2, warmup=1, repeat=3)
    expected = python.to_json()
    assert expected.keys() <= found.keys()
    assert expected["latency_ms"].keys() <= found["latency_ms"].keys()
    same = ("model", "engine", "precision", "threads", "batch_size")
    assert [found[key] for key in same] == [expected[key] for key in same]
    assert found["runs"] == 12
    times = found["latency_ms"]
    assert 0 < times["min"] <= times["median"] <= times["p90"] <= times["p99"] <= times["max"]
    assert found["throughput"] == pytest.approx(2e3 / times["mean"], rel=1e-6)
    assert found["top1"] is None


def test_a_profile_names_the_layers_that_ran_in_int8(row, residual_onnx, images, tmp_path):
    int8 = tmp_path / "int8.onnx"
    ptq(residual_onnx, images, int8, engines=())
    found = row("--profile", infer_model=int8, batch_size=1, iterations=1)["layers"]
    expected = open_session(int8, threads=1).layers({"image": images[:1]})
    assert [(layer["kind"], layer["precision"]) for layer in found] == [(r.kind, r.precision) for r in expected]
    assert sum(layer["precision"] == "int8" for layer in found) >= 4
    assert sum(layer["time_ms"] for layer in found) > 0


def test_a_set_larger_than_memory_is_not_read_whole(row, residual_onnx, tmp_path):
    path, count = tmp_path / "sparse.bin", 5_000_000  # 61 GB of holes
    with path.open("wb") as file:
        np.array([count], "<i8").tofile(file)
        file.truncate(8 + count * (4 * 3 * 32 * 32 + 8))
    found = row(infer_model=residual_onnx, infer_data=path, batch_size=2, iterations=3)
    assert found["images"] == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b[:-1], "truncated"),
        (lambda b: b + b"\0", "truncated"),
        (lambda b: b[:5], "empty"),
        (lambda b: b"", "empty"),
        (lambda b: np.array([-3], "<i8").tobytes() + b[8:], "-3 images"),
        (lambda b: np.array([2**61], "<i8").tobytes() + b[8:], "images of 3x32x32"),
        (lambda b: b[:-8] + np.array([10], "<i8").tobytes(), "image 23 has label 10"),
    ],
)
def test_damaged_data_are_one_clear_error_and_leave_no_file(run, residual_onnx, data, tmp_path, change, words):
    damaged, dump = tmp_path / "damaged.bin", tmp_path / "out.bin"
    damaged.write_bytes(change(data.read_bytes()))
    done = run(infer_model=residual_onnx, infer_data=damaged, dump_outputs=dump)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.startswith("quantrim_bench: error: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.bin"]


@pytest.mark.parametrize(
    "options",
    [
        {"infer_model": "missing.onnx"},
        {"infer_model": "MODEL", "infer_data": "missing.bin"},
        {"infer_model": "MODEL", "input_shape": "3,64,32"},
        {"infer_model": "FIXED", "batch_size": 4},
        {"infer_model": "MODEL", "engine": "onnxruntime", "precision": "bf16"},
        {"infer_model": "MODEL", "engine": "onnxruntime", "onnxruntime_library": "missing.so"},
        {"infer_model": "MODEL", "dump_outputs": "/proc/none/out.bin"},
        {"infer_model": "MODEL", "with_accuracy_layer": "true"},
    ],
)
def test_what_cannot_be_done_ends_with_one_line_and_code_1(run, residual_onnx, fixed_batch, options):
    names = {"MODEL": str(residual_onnx), "FIXED": str(fixed_batch)}
    done = run(iterations=1, **{key: names.get(value, value) for key, value in options.items()})
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("quantrim_bench: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--infer_model"],
        ["--infer_model=m.onnx", "--batch_size=0"],
        ["--infer_model=m.onnx", "--repeat=two"],
        ["--infer_model=m.onnx", "--num_threads=99999999999999999999"],
        ["--infer_model=m.onnx", "--precision=int4"],
        ["--infer_model=m.onnx", "--profile=maybe"],
        ["--infer_model=m.onnx", "--input_shape=3,,5"],
        ["--infer_modle=m.onnx"],
        ["m.onnx"],
    ],
)
def test_bad_usage_ends_with_code_2(run, words):
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_options_may_be_spelled_with_either_dash_and_booleans_are_booleans(binary, residual_onnx, data):
    words = ["--infer-model", residual_onnx, "--infer-data", data, "--batch-size", "8", "--profile", "false",
             "--with-accuracy-layer=0", "--num-threads", "1"]  # fmt: skip
    done = subprocess.run([binary, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "24 images in 3 batches" in done.stdout
    assert "precision  kind" not in done.stdout


def test_a_tuned_file_is_run_in_the_precision_that_it_asks_for(row, residual_onnx, tmp_path):
    model = onnx.load(residual_onnx)
    onnx.helper.set_model_props(model, {"quantrim.precision": "bf16"})
    onnx.save(model, tmp_path / "tuned.onnx")
    settings = {"infer_model": tmp_path / "tuned.onnx", "iterations": 1}
    assert row(**settings)["precision"] == "bf16"
    assert row(**settings, precision="f32")["precision"] == "f32"
    assert row(infer_model=residual_onnx, iterations=1)["precision"] == "f32"


def test_commands_of_bench_for_another_machine_are_the_runners_own(binary, run, tmp_path, residual_onnx):
    from quantrim.cli.bench import _native_commands

    options = {"input_shape": "1,3,32,32", "batch_size": 1, "threads": 1, "warmup": 1, "repeat": 3,
               "streams": 1, "engine": ["openvino", "onnxruntime"], "bf16": True}  # fmt: skip
    commands = _native_commands(options, [str(residual_onnx)])
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run([binary, *command, "--json", "-"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["machine"]
