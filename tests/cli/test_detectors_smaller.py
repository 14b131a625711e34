"""A detector through qat, prune and compress: its heads stay float, boxes judge, the unpruned one teaches."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.vision.config import build_model, load_config

CONFIG = """
batch_size: 2
iters: 2
train_dataset: &data {type: SyntheticScenes, count: 4, size: 64, transforms: [{type: Normalize}]}
val_dataset: {<<: *data, mode: val}
optimizer: {type: adamw}
lr_scheduler: {type: CosineAnnealingDecay, learning_rate: 0.001}
test_config: {metric: VOC}
model: {type: YOLOv3MobileNetV1, scale: 0.125}
"""
HEADS = 3


def run(words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words.split(), catch_exceptions=True)
    return result.exit_code, str(result.exception) if result.exception else result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trained")
    config, weights = folder / "config.yml", folder / "model.pth"
    config.write_text(CONFIG)
    torch.manual_seed(0)
    torch.save(build_model(load_config(config), 6).state_dict(), weights)
    return config, weights


def float_convs(path: Path) -> int:
    """Convolutions of a file whose input comes from no DequantizeLinear."""
    graph = onnx.load(path).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    return sum(
        node.op_type == "Conv" and makers.get(node.input[0]) != "DequantizeLinear" for node in graph.node
    )


@pytest.mark.parametrize("method", ["default", "pact", "lsq"])
def test_qat_keeps_the_heads_float_and_learns_from_boxes(trained, tmp_path, method):
    config, weights = trained
    words = "--distill --distill-features levels.0.tip,levels.1.tip" if method == "default" else ""
    code, text = run(
        f"qat -c {config} --weights {weights} --save-dir {tmp_path} --iters 2 --samples 2 --method {method} "
        f"--output-op decoded {words}"
    )
    assert code == 0, text
    value = json.loads((tmp_path / "qat.json").read_text())
    assert value["metric"] == "mAP"
    assert {"fp32", "ptq", "qat", "exported", "engine"} <= set(value["metrics"])
    assert float_convs(tmp_path / "model_int8.onnx") == HEADS
    outputs = [one.name for one in onnx.load(tmp_path / "model_int8.onnx").graph.output]
    assert outputs == ["boxes", "scores"]


def test_prune_by_average_precision_then_qat_with_the_unpruned_teacher(trained, tmp_path):
    config, weights = trained
    code, text = run(
        f"prune -c {config} --weights {weights} --save-dir {tmp_path} --pruning-ratio 0.3 --samples 2 "
        "--ratios 0.5 --metric ap --retraining-iters 2"
    )
    assert code == 0, text
    value = json.loads((tmp_path / "prune.json").read_text())
    assert value["flops"]["after"] <= 0.7 * value["flops"]["before"]
    assert (tmp_path / "sensitivity.json").is_file()
    code, text = run(
        f"qat -c {config} --weights {tmp_path}/model.pth --teacher {weights} --save-dir {tmp_path}/qat "
        "--iters 2 --samples 2"
    )
    assert code == 0, text
    assert float_convs(tmp_path / "qat" / "model_int8.onnx") == HEADS


def test_gradients_of_the_detectors_own_loss_choose_channels(trained, tmp_path):
    config, weights = trained
    start = f"prune -c {config} --weights {weights} --save-dir {tmp_path} --pruning-ratio 0.2"
    code, text = run(f"{start} --samples 2 --no-sensitivity --criterion taylor --retraining-iters 0")
    assert code == 0, text
    code, text = run(f"{start} --metric iou")
    assert code == 1
    assert "does not judge a detector; legal: loss, ap" in text


def test_compress_judges_by_map_and_leaves_heads_float(trained, tmp_path):
    config, weights = trained
    code, text = run(
        f"compress {weights} --data {config} -o {tmp_path}/c.onnx --max-drop 100 --samples 4 "
        f"--json {tmp_path}/c.json"
    )
    assert code == 0, text
    value = json.loads((tmp_path / "c.json").read_text())
    assert value["metric"]["name"] == "mAP"
    assert any("INT8" in one["name"] for one in value["candidates"])
