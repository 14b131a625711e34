"""A killed search goes on where it was: nothing is made, judged or timed twice."""

import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest

from tests.compression.test_compress import outlier_file

#: Searches, writes a line for each answer that is found out, and ends by SIGKILL before the n-th one.
PROGRAM = """
import os, sys
import numpy as np
import quantrim.compression
from quantrim.compression import Variant
from quantrim.journal import Journal

search = sys.modules["quantrim.compression.compress"]
search._RACE_SECONDS = 0.1
search._Search._gains = lambda self, variants, int8: ({name: 1.0 for name in variants.layers}, 10.0)
model, output, log, at = *sys.argv[1:4], int(sys.argv[4])
answer, made = Journal.answer, [0]
def counting(self, name, kind, make, files=()):
    def found():
        if made[0] == at:
            os.kill(os.getpid(), 9)
        made[0] += 1
        value = make()
        print(name, file=open(log, "a"))
        return value
    return answer(self, name, kind, found, files)
Journal.answer = counting
data = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)
result = search.compress(model, data, output, max_drop=5, engine="onnxruntime", samples=20, judged=20,
                         recipes=(Variant("mse"),))
print([(one.name, one.points) for one in result.candidates], result.chosen)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return outlier_file(tmp_path_factory.mktemp("resume") / "net.onnx")


def run(model, output, at=-1):
    words = (sys.executable, "-c", PROGRAM, model, output, output.with_suffix(".log"), at)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=200, env=environment)


def test_a_search_that_is_killed_again_and_again_finds_nothing_out_twice(model, tmp_path):
    """Each process ends after so many answers; together they ask what one that lives asks, once."""
    output = tmp_path / "killed.onnx"
    for at in (0, 6):
        assert run(model, output, at).returncode == -signal.SIGKILL
        assert not output.exists()
    last = run(model, output)
    assert last.returncode == 0, last.stderr
    whole = run(model, tmp_path / "whole.onnx")
    asked = Counter((tmp_path / "killed.log").read_text().split())
    assert max(asked.values()) == 1
    assert len(asked) > 12
    assert last.stdout.split("] ")[0] == whole.stdout.split("] ")[0]  # candidates and points; times may differ
    names = {path.name for path in tmp_path.glob("*killed*")} - {"killed.log"}
    assert names in ({"killed.onnx"}, {"killed.onnx", "killed.ranges.json"})
    onnx.checker.check_model(onnx.load(output))


def test_another_model_or_other_data_find_no_old_answer(model, tmp_path):
    output = tmp_path / "o.onnx"
    assert run(model, output, 4).returncode == -signal.SIGKILL
    proto = onnx.load(model)
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.ascontiguousarray(weight * 0.5), proto.graph.initializer[0].name)
    )
    onnx.save(proto, tmp_path / "other.onnx")
    before = set(output.with_suffix(".log").read_text().split())
    assert run(tmp_path / "other.onnx", output).returncode == 0
    asked = output.with_suffix(".log").read_text().split()
    assert len(set(asked) - before) == len(asked) - len(before)
