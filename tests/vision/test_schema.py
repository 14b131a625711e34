"""A configuration with a value of the wrong kind is told with file, key and what it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantrim.distillation import Distillation
from quantrim.errors import ConfigError
from quantrim.vision.config import build_data, build_distillation, load_config

GOOD = """
batch_size: 3
iters: 2
train_dataset:
  type: SyntheticOpticDisc
  count: 2
  size: 16
  transforms: [{type: Resize, target_size: [8, 8]}, {type: Normalize}]
learning_rate: {value: 0.01}
optimizer: {type: sgd, momentum: 0.9}
loss: {types: [{type: CrossEntropyLoss}], coef: [1]}
model: {type: FastSCNN}
"""


def load(tmp_path: Path, old: str = "", new: str = "") -> None:
    assert old in GOOD
    path = tmp_path / "c.yml"
    path.write_text(GOOD.replace(old, new, 1))
    build_data(load_config(path))


def test_the_good_one_is_good(tmp_path):
    load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch_size: 3", "batch_size: four", "batch_size: is 'four'; it must be a valid integer"),
        ("batch_size: 3", "batch_size: 0", "batch_size: is 0; it must be greater than or equal to 1"),
        ("iters: 2", "iters: 0", "iters: is 0"),
        ("iters: 2", "epochs: many", "epochs: is 'many'; it must be a valid number"),
        ("{value: 0.01}", "0.01", r"learning_rate: is 0.01; it must be a mapping such as {value: 0.01}"),
        ("{value: 0.01}", "{decay: {}}", "learning_rate.value: is missing"),
        ("{value: 0.01}", "{value: -1}", "learning_rate.value: is -1; it must be greater than 0"),
        ("learning_rate: {value: 0.01}", "lr_scheduler: poly", "lr_scheduler: is 'poly'; it must be a mapping"),
        ("learning_rate: {value: 0.01}", "lr_scheduler: {type: PolynomialDecay}",
         "lr_scheduler.learning_rate: is missing"),
        ("learning_rate: {value: 0.01}", "lr_scheduler: {type: PiecewiseDecay, learning_rate: 1}",
         "lr_scheduler.values: is missing"),
        ("momentum: 0.9", "momentun: 0.9", "optimizer: unknown key 'momentun' of sgd; did you mean 'momentum'"),
        ("momentum: 0.9", "weight_decay: lots", "optimizer.weight_decay: is 'lots'"),
        ("{types: [{type: CrossEntropyLoss}], coef: [1]}", "CrossEntropyLoss", "loss: is 'CrossEntropyLoss'"),
        ("coef: [1]", "coef: [a]", "loss.coef.0: is 'a'"),
        ("{type: FastSCNN}", "FastSCNN", "model: is 'FastSCNN'; it must be a mapping"),
        ("{type: FastSCNN}", "{type: FastSCNN, num_classes: two}", "model.num_classes: is 'two'"),
        ("target_size: [8, 8]", "target_size: big", "transform Resize: target_size is 'big'"),
        ("target_size: [8, 8]", "target_size: [0, 8]", "transform Resize: target_size.0 is 0"),
        ("[{type: Resize, target_size: [8, 8]}, {type: Normalize}]", "Resize", "transforms: is 'Resize'"),
        ("{type: Normalize}", "Normalize", "transforms.1: transform 'Normalize': it must be a mapping"),
        ("type: SyntheticOpticDisc", "kind: x", "train_dataset.type: is missing"),
        ("batch_size: 3", "_base_: 3", "_base_: is 3"),
        ("batch_size: 3", "seed: x", "seed: is 'x'; it must be a valid integer"),
        ("count: 2", "datset_root: x",
         "train_dataset: unknown key 'datset_root' of SyntheticOpticDisc; did you mean 'dataset_root'?"),
        ("count: 2", "train_path: x", "unknown key 'train_path' of SyntheticOpticDisc; it is one of Dataset"),
        ("count: 2", "difficulty: hard", "train_dataset.difficulty: is 'hard'"),
        ("count: 2", "mode: tarin", "train_dataset.mode: unknown 'tarin'; did you mean 'train'?"),
        ("count: 2", "num_classes: 3", "train_dataset.num_classes: is 3, but train_dataset has 2 classes"),
        ("iters: 2", "iters: 2\nval_dataset: {type: Dataset, num_clases: 2}",
         "val_dataset: unknown key 'num_clases' of Dataset; did you mean 'num_classes'?"),
        ("iters: 2", "iters: 2\nval_dataset: {type: Cityscapes, separator: x}",
         "val_dataset: unknown key 'separator' of Cityscapes; it is one of OpticDiscSeg"),
        ("learning_rate: {value: 0.01}", "lr_scheduler: {type: PolynomialDecay, learning_rate: 1, pwoer: 0.9}",
         "lr_scheduler: unknown key 'pwoer' of PolynomialDecay; did you mean 'power'?"),
        ("learning_rate: {value: 0.01}",
         "lr_scheduler: {type: StepDecay, learning_rate: 0.1, step_size: 3, power: 1}",
         "lr_scheduler: unknown key 'power' of StepDecay; legal: gamma,"),
        ("learning_rate: {value: 0.01}", "lr_scheduler: {type: PolyDecay, learning_rate: 0.1}",
         "lr_scheduler.type: unknown 'PolyDecay'; did you mean 'PolynomialDecay'?"),
        ("learning_rate: {value: 0.01}", "lr_scheduler: ", "neither 'lr_scheduler' nor 'learning_rate'"),
        ("{value: 0.01}", "{value: 0.01, decay: {type: poly, pwoer: 0.9}}",
         "learning_rate.decay: unknown key 'pwoer' of PolynomialDecay; did you mean 'power'?"),
        ("{value: 0.01}", "{value: 0.01, decay: {type: ply}}",
         "learning_rate.decay: unknown type 'ply'; did you mean 'poly'?"),
        ("{value: 0.01}", "{value: 0.01, decay: {type: piecewise}}", "learning_rate.decay.values: is missing"),
        ("{type: Normalize}", "{type: Normalize, mean: [0, 0, 0, 0], std: [1, 1, 1, 1]}",
         "train_dataset.transforms.1: transform Normalize: mean has 4 values; give 3, or 1 for grey images"),
        ("{type: Normalize}", "{type: Normalize, mean: [0], std: [0]}", "give one std, not 0, a mean"),
        ("target_size: [8, 8]", "target_size: [8, 99999]", "target_size.1 is 99999; it must be less than"),
        ("size: 16", "size: 1", "train_dataset.size: is 1; it must be greater than or equal to 8"),
        ("{type: Normalize}", "{type: RandomBlur, prob: .nan}", "prob is nan; it must be"),
        ("{type: FastSCNN}", "{type: FastSCNN, num_classes: 100000000}", "model.num_classes: is 100000000"),
        ("batch_size: 3", "batch_size: 3\ntest_config: {crop_size: []}", "test_config.crop_size.0: is missing"),
        ("iters: 2", "iters: 2\nexport: {transfroms: []}",
         "export: unknown key 'transfroms'; did you mean 'transforms'?"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_told_with_file_key_and_rule(tmp_path, old, new, words):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, old, new)
    assert words in str(caught.value)
    assert "c.yml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_told(tmp_path):
    (tmp_path / "c.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no text file in UTF-8"):
        load_config(tmp_path / "c.yml")


@pytest.mark.parametrize("key", ["train_dataset.transforms.9.type", "train_dataset.transforms.x"])
def test_an_override_of_a_place_that_a_list_lacks_is_told(tmp_path, key):
    (tmp_path / "c.yml").write_text(GOOD)
    with pytest.raises(ConfigError, match="no place in a list of 2; give 0 to 1"):
        load_config(tmp_path / "c.yml", [f"{key}=1"])


def test_distill_loss_is_the_weight_of_the_teacher(tmp_path: Path):
    path = tmp_path / "c.yml"
    path.write_text(GOOD + "distill_loss: {types: [{type: KLLoss}], coef: [3]}\n")
    found = build_distillation(load_config(path), Distillation(features=("head",)))
    assert (found.weight, found.temperature, found.features) == (3.0, 1.0, ("head",))
    path.write_text(GOOD)
    assert build_distillation(load_config(path)) == Distillation()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{types: [{type: MSELoss}], coef: [1]}", "distill_loss.types.0.type"),
        ("{types: [{type: KLLoss}], coef: [1, 2]}", "distill_loss.coef"),
        ("{types: [{type: KLLoss}]}", "distill_loss.coef: is missing"),
        ("3", "distill_loss: is 3"),
    ],
)
def test_a_distill_loss_that_nobody_computes_is_refused(tmp_path: Path, given: str, words: str):
    path = tmp_path / "c.yml"
    path.write_text(GOOD + f"distill_loss: {given}\n")
    with pytest.raises(ConfigError) as told:
        load_config(path)
    assert words.replace(".0.", "[0].") in str(told.value) or words in str(told.value), str(told.value)
