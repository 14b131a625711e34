"""Post-training quantization that is killed goes on where it was, and ends with the same bytes."""

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from quantrim.errors import DataError
from quantrim.graph import graph_from_onnx, normalize, read_onnx
from quantrim.graph.segments import Segments
from quantrim.journal import journal_beside
from quantrim.post_training import ptq
from quantrim.post_training.calibrate import collect
from quantrim.post_training.refine import adaround
from quantrim.post_training.resume import saved_pass

#: Runs ptq and ends by SIGKILL before the n-th batch, or the n-th layer that is rounded.
PROGRAM = """
import os, sys
from tests.post_training.test_resume import counted, quantized

model, output, where, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with counted(lambda kind, number: (kind, number) == (where, at) and os.kill(os.getpid(), 9)):
    quantized(model, output)
"""


def quantized(model, output):
    data = np.random.default_rng(0).standard_normal((24, 3, 16, 16)).astype(np.float32)
    ptq(model, data, output, engines=(), samples=24, batch_size=2, refinements=("adaround", "bias"))


@contextmanager
def counted(before=lambda kind, number: None):
    """How many batches are run and layers rounded in the block; ``before`` is told of each."""
    done = {"batch": 0, "layer": 0}

    def counting(kind, work):
        def run(*args, **kwargs):
            before(kind, done[kind])
            done[kind] += 1
            return work(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantrim.journal.EVERY_S", 0.0)
        patch.setattr(Segments, "run", counting("batch", Segments.run))
        patch.setattr(adaround, "adaptive_rounding", counting("layer", adaround.adaptive_rounding))
        yield done


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch
    from torch import nn

    from quantrim.graph.from_torch import export_onnx

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    path = tmp_path_factory.mktemp("resume") / "net.onnx"
    export_onnx(net.eval(), torch.randn(1, 3, 16, 16), path)
    return path


def killed(model: Path, output: Path, where: str, at: int) -> bool:
    command = [sys.executable, "-c", PROGRAM, str(model), str(output), where, str(at)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, timeout=200, env=environment, check=False).returncode == -signal.SIGKILL


def content(output: Path) -> list[str]:
    return [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (output, output.with_suffix(".ranges.json"))
    ]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(model, tmp_path):
    with counted() as whole:
        quantized(model, tmp_path / "whole.onnx")
    assert whole == {"batch": 12, "layer": 3}
    for where, at, left in (("batch", 7, (5, 3)), ("layer", 2, (0, 1))):
        output = tmp_path / f"{where}.onnx"
        assert killed(model, output, where, at)
        assert not output.exists()
        with counted() as again:
            quantized(model, output)
        assert (again["batch"], again["layer"]) == left
        assert content(output) == content(tmp_path / "whole.onnx")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def begun(model, tmp_path, monkeypatch):
    """A normalised model, its tensors, batches, and a journal that was interrupted after five of them."""
    monkeypatch.setattr("quantrim.journal.EVERY_S", 0.0)
    original = normalize(read_onnx(model))
    batches = [
        {"x": array} for array in np.random.default_rng(1).standard_normal((9, 2, 3, 16, 16)).astype(np.float32)
    ]
    batches = [{next(iter(original.graph.inputs)).name: batch["x"]} for batch in batches]
    graph = graph_from_onnx(original, batches[0])
    tensors = [node.output for node in graph.nodes]

    def sketched(feeds, journal):
        return collect(original, tensors, feeds, saved=saved_pass(journal, original, tensors, batches[:2]))

    def interrupted():
        yield from batches[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), journal_beside(tmp_path / "o.onnx") as journal:
        sketched(interrupted(), journal)
    return sketched, batches, tmp_path / "o.onnx"


def test_sketches_go_on_from_the_very_bits(begun):
    sketched, batches, output = begun
    with journal_beside(output) as journal:
        resumed = sketched(batches, journal)
    with journal_beside(output) as journal:
        whole = sketched(batches, journal)
    for name, one in whole.items():
        other = resumed[name]
        assert (one.low, one.high, one.abs_max_sum, one.samples) == (
            other.low, other.high, other.abs_max_sum, other.samples,
        )  # fmt: skip
        assert np.array_equal(one.counts, other.counts)


@pytest.mark.parametrize("change", ["another", "fewer"])
def test_other_data_are_refused_and_the_next_run_starts_anew(begun, change):
    sketched, batches, output = begun
    other = [*batches[:3], {name: array + 1 for name, array in batches[3].items()}, *batches[4:]]
    changed = other if change == "another" else batches[:3]
    with (
        pytest.raises(DataError, match="others than when this run was interrupted"),
        journal_beside(output) as journal,
    ):
        sketched(changed, journal)
    with journal_beside(output) as journal:
        assert next(iter(sketched(changed, journal).values())).samples == 2 * len(changed)


def test_a_damaged_state_is_made_anew(begun):
    sketched, batches, output = begun
    state = next(output.with_name(".o.onnx.resume").glob("*.npz"))
    state.write_bytes(state.read_bytes()[:-200])
    with journal_beside(output) as journal:
        assert next(iter(sketched(batches, journal).values())).samples == 18
