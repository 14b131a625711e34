"""Calibration without data: the images, and the files that come of them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import ConfigError, DataError
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import DataFree, ptq
from quantrim.post_training.synthesis.batch_norm import distance, images_of_statistics, layers_with_statistics
from quantrim.post_training.synthesis.leaves import dead_leaves


def test_leaves_have_the_spectrum_of_photographs():
    """Amplitude falls with frequency about as 1/f, as in natural images; white noise would not fall at all."""
    generator = np.random.default_rng(0)
    side = 128
    total = np.zeros((side, side))
    for _ in range(8):
        grey = dead_leaves(side, side, generator).mean(2)
        total += np.abs(np.fft.fft2(grey - grey.mean()))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    bands = [(low, 2 * low) for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8)]
    heights = [total[(frequency >= low) & (frequency < high)].mean() for low, high in bands]
    slope = np.polyfit(np.log([low for low, _ in bands]), np.log(heights), 1)[0]
    assert -1.9 < slope < -0.7


def test_leaves_come_again_by_their_seed():
    one, again, other = (dead_leaves(40, 56, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.shape == (40, 56, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_distance_is_that_of_its_formula():
    layer = nn.BatchNorm2d(5)
    generator = torch.Generator().manual_seed(0)
    layer.running_mean = torch.randn(5, generator=generator)
    layer.running_var = torch.rand(5, generator=generator) + 0.5
    values = torch.randn(4, 5, 3, 2, generator=generator)
    expected = 0.0
    for channel in range(5):
        seen, std = values[:, channel].double(), float(layer.running_var[channel]) ** 0.5
        off_mean = (float(seen.mean()) - float(layer.running_mean[channel])) / std
        off_std = float(seen.std(correction=0)) / std - 1
        expected += (off_mean**2 + off_std**2) / 5
    assert float(distance(layer, values)) == pytest.approx(expected, rel=1e-4)


def test_images_bring_the_layers_nearer_to_what_they_remember(residual_net: nn.Module):
    layers = layers_with_statistics(residual_net)
    before = copy.deepcopy(residual_net.state_dict())
    seen: list[float] = []

    def total(images: np.ndarray) -> float:
        seen.clear()
        hooks = [
            layer.register_forward_pre_hook(lambda layer, given: seen.append(float(distance(layer, given[0]))))
            for layer in layers
        ]
        with torch.no_grad():
            residual_net(torch.from_numpy(images))
        for hook in hooks:
            hook.remove()
        return float(np.mean(seen))

    start = np.random.default_rng(0).uniform(-3, 3, (8, 3, 32, 32)).astype(np.float32) + 2
    made = images_of_statistics(residual_net, start, steps=60, learning_rate=0.1)
    assert made.shape == start.shape
    assert total(made) < 0.3 * total(start)
    assert all(torch.equal(value, before[name]) for name, value in residual_net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in residual_net.parameters())


def test_a_layer_that_was_never_trained_remembers_nothing():
    assert layers_with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))) == []
    assert layers_with_statistics(nn.BatchNorm2d(4, track_running_stats=False)) == []


def test_damaged_statistics_are_named(residual_net: nn.Module):
    net = copy.deepcopy(residual_net)
    layers_with_statistics(net)[0].running_mean[0] = float("nan")
    with pytest.raises(DataError, match="statistics are damaged"):
        images_of_statistics(net, np.zeros((2, 3, 32, 32), np.float32), steps=2)


def test_a_module_is_quantized_on_images_of_its_statistics(residual_net: nn.Module, tmp_path: Path):
    real = np.random.default_rng(5).standard_normal((16, 3, 32, 32)).astype(np.float32)
    result = ptq(
        residual_net, DataFree(images=16, steps=10), tmp_path / "int8.onnx",
        input_shape=(1, 3, 32, 32), judge_data=real,
    )  # fmt: skip
    assert result.faithful
    assert result.samples == 12
    assert "statistics of 4 BatchNorm layers" in result.notes[0]


def test_a_file_is_quantized_on_dead_leaves(residual_onnx: Path, tmp_path: Path):
    result = ptq(residual_onnx, DataFree(images=8), tmp_path / "int8.onnx", engines=("onnxruntime",))
    assert "random shapes (dead leaves)" in result.notes[0]
    assert "judge_data" in result.notes[0]
    assert result.samples == 6


def test_the_command_line_asks_for_one_source(residual_onnx: Path, tmp_path: Path):
    words = [
        "ptq",
        str(residual_onnx),
        "-o",
        str(tmp_path / "int8.onnx"),
        "--data-free",
        "--engine",
        "onnxruntime",
    ]
    done = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "ptq.json")])
    assert done.exit_code in (0, 3), done.output
    assert "dead leaves" in json.loads((tmp_path / "ptq.json").read_text())["notes"][0]
    with pytest.raises(ConfigError, match="one of --data"):
        CliRunner().invoke(app, [*words, "--data", "images"], catch_exceptions=False)


def test_what_takes_no_images_is_refused(tmp_path: Path):
    path = tmp_path / "rows.onnx"
    export_onnx(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(1, 8),), path)
    with pytest.raises(DataError, match="to fill it with images"):
        ptq(path, DataFree(images=4), tmp_path / "int8.onnx", engines=())


def test_numbers_of_images_are_checked():
    with pytest.raises(ConfigError, match="images is 1"):
        DataFree(images=1)
