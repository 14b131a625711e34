"""PaddleDetection's recipe of yolov3_mobilenet_v1_voc, read and turned into quantrim's."""

from pathlib import Path

import pytest
import torch

from quantrim.errors import ConfigError
from quantrim.paddle.detection import detection_overrides
from quantrim.vision.config import build_loss, build_model, build_optimizer, load_config

PADDLE = """
architecture: YOLOv3
max_iters: 70000
metric: VOC
map_type: 11point
num_classes: 20
LearningRate:
  base_lr: 0.001
  schedulers:
  - !PiecewiseDecay
    gamma: 0.1
    milestones: [55000, 62000]
  - !LinearWarmup
    start_factor: 0.
    steps: 1000
OptimizerBuilder:
  optimizer: {momentum: 0.9, type: Momentum}
  regularizer: {factor: 0.0005, type: L2}
TrainReader:
  batch_size: 8
  dataset:
    !VOCDataSet
    dataset_dir: dataset/voc
    anno_path: trainval.txt
    with_background: false
"""
OURS = Path(__file__).parents[2] / "configs/detection/yolov3_mobilenet_v1_voc.yml"


@pytest.fixture
def paddle(tmp_path):
    path = tmp_path / "yolov3_mobilenet_v1_voc.yml"
    path.write_text(PADDLE)
    return path


def test_the_recipe_is_the_one_in_configs(paddle):
    read, own = load_config(OURS, detection_overrides(paddle)), load_config(OURS)
    assert read.spec.train_dataset.dataset_root.as_posix() == "dataset/voc"
    same = {"train_dataset": None, "lr_scheduler": None}
    assert read.spec.model_copy(update=same) == own.spec.model_copy(update=same)
    layer = torch.nn.Linear(1, 1)
    for iteration in (0, 500, 999, 1000, 54999, 55000, 61999, 62000, 69999):
        rates = [build_optimizer(one, layer)[1].lr_lambdas[0](iteration) for one in (read, own)]
        assert rates[0] == pytest.approx(rates[1], abs=2e-3)


def test_the_command_line_of_quantization_changes_it(paddle):
    changes = [
        "max_iters=30000",
        "LearningRate.base_lr=0.0001",
        "LearningRate.schedulers=[!PiecewiseDecay {gamma: 0.1, milestones: [10000]}]",
    ]
    config = load_config(OURS, detection_overrides(paddle, changes))
    assert config.iterations() == 30000
    _, scheduler = build_optimizer(config, torch.nn.Linear(1, 1))
    factor = scheduler.lr_lambdas[0]
    assert scheduler.base_lrs == [0.0001]
    assert [factor(step) for step in (0, 9999, 10000)] == pytest.approx([1, 1, 0.1])


def test_model_and_loss_of_the_recipe_are_built():
    config = load_config(OURS)
    model = build_model(config, 20)
    assert model.decoder.anchors[0][0] == (116, 90)
    assert build_loss(config, 255, model).keywords["ignore_thresh"] == 0.7


def test_an_unknown_scheduler_is_told(paddle):
    with pytest.raises(ConfigError, match="CosineDecay is not read"):
        detection_overrides(paddle, ["LearningRate.schedulers=[!CosineDecay {max_iters: 9}]"])
    with pytest.raises(ConfigError, match="no readable YAML"):
        detection_overrides(paddle.with_name("none.yml"))
