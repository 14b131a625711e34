"""Shards of the calibration data add up to one pass, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import ConfigError, DataError
from quantrim.post_training import PtqConfig, ptq
from quantrim.post_training.shards import Sketches, calibrate_shard, load_shard, save_shard
from quantrim.ranges import Sketch

CONFIG = PtqConfig(samples=None, batch_size=1, engines=())


def shards_of(model, data, count, folder=None, config=CONFIG):
    made = [calibrate_shard(model, data, config, index, count) for index in range(count)]
    if folder is None:
        return made
    for one in made:
        save_shard(one, folder / f"{one.index}.npz")
    return [load_shard(folder / f"{index}.npz") for index in range(count)]


def contents(path):
    model = onnx.load(path)
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


@pytest.mark.parametrize("count", [1, 3, 8])
def test_shards_equal_one_pass_bit_for_bit(residual_onnx, images, tmp_path, count):
    ptq(residual_onnx, images, tmp_path / "one.onnx", config=CONFIG)
    parts = shards_of(residual_onnx, images, count, tmp_path)
    result = ptq(residual_onnx, Sketches.merge(parts[::-1]), tmp_path / "many.onnx", config=CONFIG)
    assert contents(tmp_path / "many.onnx") == contents(tmp_path / "one.onnx")
    assert result.samples == len(images)


def test_files_of_a_folder_are_dealt_out_like_the_samples_of_one_pass(residual_onnx, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(11):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index:02d}.png")
    config = PtqConfig(samples=7, batch_size=1, engines=(), input_shape=(1, 3, 32, 32))
    ptq(residual_onnx, tmp_path / "images", tmp_path / "one.onnx", config=config)
    merged = Sketches.merge(shards_of(residual_onnx, tmp_path / "images", 2, config=config))
    assert merged.samples == 7
    ptq(residual_onnx, merged, tmp_path / "two.onnx", config=config)
    assert contents(tmp_path / "two.onnx") == contents(tmp_path / "one.onnx")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=12), st.integers(1, 5))
def test_sketches_survive_the_file_whatever_they_counted(seeds, count):
    whole, parts = Sketch(), [Sketch() for _ in range(count)]
    for position, seed in enumerate(seeds):
        generator = np.random.default_rng(seed)
        values = (generator.standard_normal((1, 50)) * 10.0 ** generator.integers(-20, 20)).astype(np.float32)
        whole.add(values)
        parts[position % count].add(values)
    merged = parts[0]
    for part in parts[1:]:
        codes = np.flatnonzero(part.counts)
        read = Sketch.from_counts(codes, part.counts[codes])
        read.low, read.high, read.samples, read.abs_max_sum = (
            part.low,
            part.high,
            part.samples,
            part.abs_max_sum,
        )
        merged = merged.merge(read)
    assert (merged.counts == whole.counts).all()
    assert (merged.low, merged.high, merged.samples) == (whole.low, whole.high, whole.samples)


def test_a_lost_shard_is_named_and_strangers_are_refused(residual_onnx, images, tmp_path):
    parts = shards_of(residual_onnx, images, 3)
    with pytest.raises(DataError, match="shard 1 of 3 is missing"):
        Sketches.merge([parts[2], parts[0]])
    other = PtqConfig(samples=4, engines=())
    with pytest.raises(DataError, match="different models"):
        Sketches.merge([*parts[:2], calibrate_shard(residual_onnx, images, other, 2, 3)])
    with pytest.raises(ConfigError, match="the last is 2"):
        calibrate_shard(residual_onnx, images, CONFIG, 3, 3)
    merged = Sketches.merge(parts)
    with pytest.raises(ConfigError, match="equalize"):
        ptq(residual_onnx, merged, tmp_path / "q.onnx", refinements=("equalize",), engines=())
    changed = onnx.load(residual_onnx)
    changed.doc_string = "another"
    onnx.save(changed, tmp_path / "another.onnx")
    with pytest.raises(DataError, match="another model"):
        ptq(tmp_path / "another.onnx", merged, tmp_path / "q.onnx", engines=())
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("damage", [b"", b"no archive", "cut"])
def test_a_damaged_shard_is_one_clear_error(residual_onnx, images, tmp_path, damage):
    save_shard(calibrate_shard(residual_onnx, images[:4], CONFIG, 0, 1), tmp_path / "part.npz")
    content = (tmp_path / "part.npz").read_bytes()
    (tmp_path / "part.npz").write_bytes(content[: len(content) // 2] if damage == "cut" else damage)
    with pytest.raises(DataError, match=r"part\.npz"):
        load_shard(tmp_path / "part.npz")


def test_the_verbs_calibrate_in_parts_and_do_not_repeat_a_finished_one(residual_onnx, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    paths = [tmp_path / f"part-{index}.npz" for index in range(2)]
    for index, path in enumerate(paths):
        words = [
            "calibrate",
            residual_onnx,
            "--data",
            tmp_path / "images.npy",
            "--shard",
            f"{index}/2",
            "-o",
            path,
        ]
        done = CliRunner().invoke(app, [*map(str, words), "--json", "-"])
        assert json.loads(done.stdout)["samples"] == len(images) // 2
        again = CliRunner().invoke(app, list(map(str, words)))
        assert "is there already" in again.output
    words = ["ptq", residual_onnx, "--sketches", paths[0], "--sketches", paths[1], "-o", tmp_path / "q.onnx",
             "--engine", "onnxruntime", "--json", tmp_path / "q.json"]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)))
    assert (tmp_path / "q.json").is_file(), done.output
    assert json.loads((tmp_path / "q.json").read_text())["samples"] == len(images)
