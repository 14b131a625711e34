"""Verbs on other machines, against sshd on loopback ports with keys of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.devices import Host, HostLostError, Job, device_named, host_named, run_on
from quantrim.errors import ConfigError, DataError, EngineError


def call(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def shape_of(value):
    """A value of JSON with its keys alone."""
    if isinstance(value, dict):
        return {key: shape_of(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape_of(one) for one in value[:1]]
    return type(value).__name__


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("ssh://board", Host("ssh://board", "board", None, "quantrim")),
        ("ssh://pi@10.0.0.7:2222", Host("ssh://pi@10.0.0.7:2222", "pi@10.0.0.7", 2222, "quantrim")),
        ("ssh://b/opt/quantrim", Host("ssh://b/opt/quantrim", "b", None, "/opt/quantrim")),
        ("ssh://u@[::1]:22/x", Host("ssh://u@[::1]:22/x", "u@::1", 22, "/x")),
    ],
)
def test_addresses(text, host):
    assert host_named(text) == host
    assert [one.address for one in device_named(f"{text},ssh://other")] == [text, "ssh://other"]


@pytest.mark.parametrize(
    "text",
    ["board", "ssh://", "http://board", "ssh://-oProxyCommand=x", "ssh://-l@board", "ssh://b:99999",
     "ssh://u:secret@board", "ssh://a b", "ssh://board?x=1", ""],
)  # fmt: skip
def test_what_is_no_address_is_refused_before_ssh_sees_it(text):
    with pytest.raises(ConfigError, match="ssh://"):
        device_named(text)


def test_bench_there_says_what_bench_here_says(port, quantrim, residual_onnx, tmp_path):
    """The JSON has the same keys, and in one sitting the same machine gives medians of one size."""
    common = (
        "bench",
        residual_onnx,
        "--warmup",
        5,
        "--repeat",
        40,
        "--engine",
        "openvino",
        "--engine",
        "onnxruntime",
    )
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert call(*common, "--json", here).exit_code == 0
    done = call(*common, "--on", f"ssh://board:{port}{quantrim}", "--json", there)
    assert done.exit_code == 0, done.output
    rows, expected = json.loads(there.read_text()), json.loads(here.read_text())
    assert [row.pop("host") for row in rows] == [f"ssh://board:{port}{quantrim}"] * 2
    assert shape_of(rows) == shape_of(expected)
    for row, same in zip(rows, expected, strict=True):
        assert [row[key] for key in ("model", "engine", "threads")] == [
            same[key] for key in ("model", "engine", "threads")
        ]
        assert row["machine"] == same["machine"]
        assert 0.2 < row["latency_ms"]["median"] / same["latency_ms"]["median"] < 5
    assert "openvino 20" in done.output, "versions and processor are told"
    assert rows[0]["machine"]["processor"] in done.output


def test_inspect_sends_float_model_data_and_deploy(port, quantrim, residual_onnx, images, tmp_path):
    made = tmp_path / "m"
    made.mkdir()
    np.save(tmp_path / "images.npy", images)
    quantized = made / "q.onnx"
    words = ("ptq", residual_onnx, "--data", tmp_path / "images.npy", "-o", quantized, "--accept", "any")
    assert call(*words, "--engine", "openvino").exit_code == 0
    (made / "deploy.yaml").write_text("Deploy: {task: classification, transforms: []}\n")
    common = (
        "inspect",
        quantized,
        "--against",
        residual_onnx,
        "--data",
        tmp_path / "images.npy",
        "--samples",
        24,
    )
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    first = call(*common, "--json", here)
    second = call(*common, "--on", f"ssh://board:{port}{quantrim}", "--json", there)
    assert second.exit_code == first.exit_code, second.output
    value, expected = json.loads(there.read_text()), json.loads(here.read_text())
    assert value.pop("host").startswith("ssh://board")
    for one in (value, expected):
        for run in one["executed"]:
            run.pop("time_ms")
    expected["judgement"]["how"] = expected["judgement"]["how"].replace(str(made), "M")
    value["judgement"]["how"] = value["judgement"]["how"].replace(str(made), "M")
    assert value["verdict"] == expected["verdict"]
    assert value["judgement"]["scores"] == expected["judgement"]["scores"]
    assert value["model"] == str(quantized)
    assert shape_of(value) == shape_of(expected)


def test_a_target_is_learned_there(port, program, tmp_path):
    there = program(
        "quantrim", f'echo "$@" > {tmp_path}/asked; echo "{{}}" > out/0.json; echo learned > out/pi.json'
    )
    done = call("target", "learn", "-o", tmp_path / "pi.json", "--engine", "openvino", "--threads", 2,
                "--on", f"ssh://board:{port}{there}")  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:2] == ["target", "learn"]
    assert {"--engine", "openvino", "--threads", "2", "-o", "out/pi.json"} <= set(asked)
    assert (tmp_path / "pi.json").read_text() == "learned\n"


def test_compress_brings_the_file_back(port, quantrim, residual_onnx, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    output = tmp_path / "best.onnx"
    words = ("compress", residual_onnx, "--data", tmp_path / "images.npy", "--samples", 8, "--images", 16)
    done = call(*words, "-o", output, "--max-drop", 100, "--on", f"ssh://board:{port}{quantrim}",
                "--json", tmp_path / "c.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    value = json.loads((tmp_path / "c.json").read_text())
    assert value["output"] == str(output)
    onnx.checker.check_model(onnx.load(output))
    again = call(*words, "-o", output, "--max-drop", 100, "--on", f"ssh://board:{port}{quantrim}")
    assert again.exit_code == 0
    assert json.loads((tmp_path / "best.compress.json").read_text()).keys() == value.keys()


def test_several_machines_at_once_and_one_that_is_dead(port, closed_port, quantrim, residual_onnx, tmp_path):
    common = ("bench", residual_onnx, "--warmup", 1, "--repeat", 3, "--json", tmp_path / "rows.json")
    alive, dead = f"ssh://board:{port}{quantrim}", f"ssh://board:{closed_port}{quantrim}"
    done = call(*common, "--on", alive, "--on", alive.replace("board", "twin"), "--on", dead)
    assert isinstance(done.exception, EngineError)
    assert dead in str(done.exception)
    assert "refused" in str(done.exception)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["host"] for row in rows] == [alive, alive.replace("board", "twin")]


def test_work_of_a_host_that_dies_goes_to_the_next(
    port, closed_port, program, quantrim, residual_onnx, tmp_path
):
    """One host is not there, one cuts the connection in the middle; the third one does the work."""
    dying = program("dying", "sleep 0.2; kill -9 $(ps -o ppid= -p $PPID)")
    hosts = [f"ssh://gone:{closed_port}", f"ssh://dying:{port}{dying}", f"ssh://board:{port}{quantrim}"]
    common = ("bench", residual_onnx, "--warmup", 1, "--repeat", 3, "--json", tmp_path / "rows.json")
    done = call(*common, "--on", ",".join(hosts))
    assert done.exit_code == 0, done.output
    assert [row["host"] for row in json.loads((tmp_path / "rows.json").read_text())] == [hosts[2]]
    assert done.stderr.count("The next host takes over.") == 2


def test_a_host_without_the_program_or_with_a_talking_login_is_named(port, program, residual_onnx):
    with pytest.raises(HostLostError, match="no program '/nowhere/quantrim' there"):
        run_on(host_named(f"ssh://board:{port}/nowhere/quantrim"), Job((("bench",),), {}, {}, {}))
    silent = program("silent", "echo stays; exit 0")
    with pytest.raises(EngineError, match="stays"):
        run_on(host_named(f"ssh://board:{port}{silent}"), Job((("bench",),), {}, {}, {}))


def test_refusals_of_the_verb_come_back_in_its_words(port, quantrim, tmp_path):
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    done = call("bench", tmp_path / "damaged.onnx", "--on", f"ssh://board:{port}{quantrim},ssh://other")
    assert "not an ONNX file" in str(done.exception)
    assert str(tmp_path / "damaged.onnx") in str(done.exception), "by its name here"


def test_the_folder_on_the_host_is_gone_afterwards(port, program, tmp_path):
    told = program("told", f"pwd > {tmp_path}/where; ls -R . > {tmp_path}/what; printf 1 > out/0.json")
    (tmp_path / "sent").write_text("x")
    job = Job((("bench",),), {"in/0/sent": tmp_path / "sent"}, {}, {})
    assert run_on(host_named(f"ssh://board:{port}{told}"), job).values == (1,)
    assert "sent" in (tmp_path / "what").read_text()
    assert not Path((tmp_path / "where").read_text().strip()).exists()


def test_only_the_images_that_the_verb_takes_are_sent(residual_onnx, tmp_path):
    from PIL import Image

    from quantrim.devices.staging import data_files, names_on_host

    (tmp_path / "images" / "a").mkdir(parents=True)
    for index in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a" / f"{index}.png")
    sent = data_files(tmp_path / "images", 3)
    assert [file.name for file in sent] == ["0.png", "3.png", "6.png"]
    assert list(names_on_host(sent, tmp_path / "images", "in/0")) == [f"in/0/a/{n}.png" for n in (0, 3, 6)]
    (tmp_path / "list.txt").write_text("images/a/0.png 1\n")
    assert [file.name for file in data_files(tmp_path / "list.txt", 3)] == ["list.txt", "0.png"]
    with pytest.raises(DataError, match="outside"):
        names_on_host([residual_onnx], tmp_path, "in/0")
    with pytest.raises(ConfigError, match="data set can't be sent"):
        data_files(tmp_path / "config.yml", None)


def test_external_weights_travel_with_the_model(port, quantrim, residual_onnx, tmp_path):
    big, weights = tmp_path / "big.onnx", tmp_path / "big.weights"
    model = onnx.load(residual_onnx)
    onnx.save(model, big, save_as_external_data=True, location=weights.name, size_threshold=0)
    assert weights.stat().st_size > 1000
    done = call("bench", big, "--repeat", 2, "--on", f"ssh://board:{port}{quantrim}")
    assert done.exit_code == 0, (done.output, done.exception)


def test_a_target_of_a_fleet_is_timed_on_its_device(
    port, closed_port, quantrim, residual_onnx, images, tmp_path
):
    from quantrim.cli.fleet import _bench_words
    from quantrim.fleet import read_fleet, run_fleet

    np.save(tmp_path / "images.npy", images)
    alive, dead = f"ssh://board:{port}{quantrim}", f"ssh://gone:{closed_port}"
    (tmp_path / "fleet.yaml").write_text(
        f"models: {{net: {{file: {residual_onnx}, data: images.npy}}}}\n"
        f"targets:\n  board: {{target: onnxruntime, on: '{dead},{alive}'}}\n"
        f"  dead: {{target: onnxruntime, on: '{dead}'}}\n"
        "budgets: {any: {accept: any}}\nrecipe: {samples: 8, judged: 8}\n"
    )
    spec = read_fleet(tmp_path / "fleet.yaml")
    result = run_fleet(spec, tmp_path / "out", bench_words=_bench_words)
    cells = {cell.target: cell for cell in result.cells}
    assert cells["board"].verdict == "ok", cells["board"]
    assert cells["board"].results[1][1]["host"] == alive
    assert cells["dead"].verdict == "failed"
    assert "refused" in cells["dead"].reason
    again = run_fleet(spec, tmp_path / "out", bench_words=_bench_words)
    assert (again.made, again.failed) == (0, 1), "what was timed on the device is not timed again"
