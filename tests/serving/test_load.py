"""The service in a process of its own, and the load test that measures it from outside."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from torch import nn

from examples.serving.load_test import example_picture, level, table
from quantrim.cli.serve import serve
from quantrim.errors import QuantrimError
from quantrim.recipes.loading import Loaded, load
from quantrim.recipes.runs import export
from quantrim.serving import ServiceLimits, create_app, load_artefact
from quantrim.vision.config import load_config
from quantrim.vision.shipped import shipped_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("s") / "model.onnx"
    config = load_config(shipped_file("configs", "quick_start/demo.yml"), ["val_dataset.size=64"])
    data = load(config, None).data
    export(Loaded(config, nn.Conv2d(3, 2, 3, 1, 1).eval(), data), path)
    return path


@pytest.fixture
def url(segmenter):
    """Address of a service that listens on a real port."""
    app = create_app(load_artefact(segmenter, threads=1), ServiceLimits(max_batch=4, max_wait_ms=5))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_many_clients_share_batches_and_the_table_says_so(url):
    rows = [level(url, example_picture(url), clients, 0.4, batching=True) for clients in (1, 4)]
    assert [row.errors for row in rows] == [0, 0]
    assert rows[0].images_per_batch == 1
    assert rows[1].images_per_batch > 1.2
    assert all(row.latency_ms["p50"] <= row.latency_ms["p99"] for row in rows)
    assert f"| 4 | on | {rows[1].images_per_second:.1f} |" in table(rows)


def test_answers_other_than_200_are_counted_as_errors(url):
    row = level(url, b"no image", 2, 2.0, batching=True)  # seconds enough for one answer on a busy machine
    assert row.errors > 0
    assert row.images_per_second == 0
    assert "| - | - | - |" in table([row])


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(QuantrimError, match=r"deploy\.yaml"):
        serve(tmp_path / "none.onnx")


@pytest.mark.slow
def test_one_command_starts_presses_and_prints_a_table(segmenter):
    command = [sys.executable, "-m", "examples.serving.load_test", str(segmenter), "--clients", "1,4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--seconds", "0.5"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[1]) for row in rows] == [("1", "off"), ("1", "on"), ("4", "off"), ("4", "on")]
    assert all(float(row[2]) > 1 and row[-1] == "0" for row in rows)
    assert all(float(row[6]) == 1 for row in rows if row[1] == "off")
