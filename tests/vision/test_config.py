from pathlib import Path

import pytest
import torch

from quantrim.errors import ConfigError, DataError
from quantrim.vision.config import (
    build_data,
    build_loss,
    build_model,
    build_optimizer,
    export_transforms,
    load_config,
)

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = CONFIGS / "quick_start" / "bisenet_optic_disc_512x512_1k.yml"
OLD_FORM = QUICK.read_text().replace(
    """lr_scheduler:
  type: PolynomialDecay
  learning_rate: 0.01
  end_lr: 0
  power: 0.9
""",
    """learning_rate:
  value: 0.01
  decay:
    type: poly
    power: 0.9
    end_lr: 0.0
""",
)


@pytest.fixture
def write(tmp_path):
    def make(text: str, name: str = "c.yml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return make


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yml")), ids=lambda p: p.stem)
def test_every_shipped_config_builds_model_loss_and_optimizer(path):
    config = load_config(path)
    with torch.device("meta"):
        model = build_model(config, 19)
    build_loss(config, 255)
    optimizer, scheduler = build_optimizer(config, model, iterations=10)  # epochs would ask for the data
    assert optimizer.param_groups[0]["lr"] > 0
    optimizer.step()
    scheduler.step()


def test_both_learning_rate_forms_give_the_same_schedule(write):
    rates = []
    for path in (QUICK, write(OLD_FORM)):
        optimizer, scheduler = build_optimizer(load_config(path), torch.nn.Linear(2, 2))
        rates.append([])
        for _ in range(5):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0][1] == pytest.approx(0.01 * (1 - 1 / 1000) ** 0.9)


def test_a_base_is_merged_and_not_inherited_mappings_replace(write):
    write(QUICK.read_text(), "base.yml")
    path = write(
        "_base_: base.yml\niters: 7\noptimizer: {weight_decay: 0.5}\n"
        "val_dataset: {_inherited_: False, type: SyntheticOpticDisc}\n"
    )
    values = load_config(path).document.values
    assert values["iters"] == 7
    assert values["optimizer"] == {"type": "sgd", "momentum": 0.9, "weight_decay": 0.5}
    assert values["val_dataset"] == {"type": "SyntheticOpticDisc"}


def test_a_circle_of_bases_is_told(write):
    write("_base_: b.yml\n", "a.yml")
    with pytest.raises(ConfigError, match="circle"):
        load_config(write("_base_: a.yml\n", "b.yml"))


def test_overrides_reach_into_lists_and_zero_counts():
    config = load_config(
        QUICK, ["iters=5", "train_dataset.transforms.0.target_size=[64, 64]", "optimizer.momentum=0"]
    )
    assert config.iterations() == 5
    assert config.document.values["train_dataset"]["transforms"][0]["target_size"] == [64, 64]
    assert config.document.values["optimizer"]["momentum"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("iters: 1000", "itres: 1000"), "did you mean 'iters'"),
        (("type: sgd", "type: sdg"), "did you mean 'sgd'"),
        (("PolynomialDecay", "PolynomDecay"), "did you mean 'PolynomialDecay'"),
        (("type: CrossEntropyLoss", "type: CrossEntropy"), "did you mean 'CrossEntropyLoss'"),
        (("type: BiSeNetV2", "type: BiSeNet2"), "BiSeNetV2"),
        (("coef: [1, 1, 1, 1, 1]", "coef: []"), "loss"),
        (("batch_size: 4", "batch_size: [4"), "no valid YAML"),
    ],
)
def test_mistakes_name_the_file_the_key_and_the_nearest_word(write, change, words):
    text = QUICK.read_text()
    assert change[0] in text

    def build() -> None:
        config = load_config(write(text.replace(*change)))
        build_loss(config, 255)
        build_optimizer(config, build_model(config, 2))

    with pytest.raises(ConfigError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_contradicting_number_of_classes_is_refused():
    config = load_config(
        CONFIGS / "quick_start" / "bisenet_synthetic_disc_256x256.yml", ["model.num_classes=3"]
    )
    with pytest.raises(ConfigError, match="has 2 classes"):
        build_data(config)


def test_a_missing_data_set_says_how_to_get_one():
    with pytest.raises(DataError, match="write_optic_disc"):
        build_data(load_config(QUICK))


def test_epochs_are_turned_into_iterations_and_the_schedule_ends_with_them(monkeypatch):
    path = CONFIGS / "quick_start" / "bisenet_synthetic_disc_256x256.yml"
    config = load_config(path, ["epochs=3", "train_dataset.count=50", "lr_scheduler.warmup_iters=0"])
    assert config.batch_size == 8
    assert config.iterations() == 3 * 6
    assert config.iterations(batch_size=5) == 3 * 10
    optimizer, scheduler = build_optimizer(config, torch.nn.Linear(2, 2))
    for _ in range(18):
        assert optimizer.param_groups[0]["lr"] > 0
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert config.iterations() == 3 * 3


def test_epochs_replace_inherited_iterations_and_both_at_once_are_refused(write):
    write(QUICK.read_text(), "base.yml")
    assert "iters" not in load_config(write("_base_: base.yml\nepochs: 2\n")).document.values
    with pytest.raises(ConfigError, match="either 'iters' or 'epochs'"):
        load_config(write(QUICK.read_text() + "\nepochs: 2\n"))


def test_an_unknown_argument_of_a_loss_gets_a_suggestion():
    with pytest.raises(ConfigError, match="'wieght' of CrossEntropyLoss; did you mean 'weight'"):
        load_config(QUICK, ["loss.types.0.wieght=[1, 2]"])


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("{type: CrossEntropyLoss, coef: 3}", "unknown key 'coef' of CrossEntropyLoss"),
        (
            "{type: MixedLoss, losses: [{type: DiceLoss}], coeff: [1]}",
            "'coeff' of MixedLoss; did you mean 'coef'?",
        ),
        ("{type: MixedLoss, losses: [{type: DiceLoss}]}", "1 losses, 0 coefficients"),
        ("{type: MixedLoss, losses: [{type: DiceLoss}], coef: [1, 2]}", "1 losses, 2 coefficients"),
        (
            "{type: MixedLoss, losses: [{type: DiceLoss, smoth: 1}], coef: [1]}",
            "unknown key 'smoth' of DiceLoss",
        ),
    ],
)
def test_a_loss_that_is_put_together_wrongly_is_told_with_the_file(loss, words):
    with pytest.raises(ConfigError) as caught:
        load_config(QUICK, [f"loss.types=[{loss}]"])
    assert str(caught.value).startswith(f"{QUICK}:34: loss.types.0")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "export={transforms: [{type: Normalize, maen: [1]}]}",
            "export.transforms.0: transform Normalize: unknown argument 'maen'",
        ),
        (
            "val_dataset.transforms=[{type: Normalise}]",
            "val_dataset.transforms.0: unknown transform 'Normalise'",
        ),
    ],
)
def test_a_mistake_in_the_transforms_of_deployment_names_the_file_and_the_key(change, words):
    with pytest.raises(ConfigError) as caught:
        export_transforms(load_config(QUICK, [change]))
    assert str(caught.value).startswith(str(QUICK))
    assert f": {words}; did you mean" in str(caught.value)


def test_an_unknown_argument_of_a_model_names_the_file_and_the_key():
    with pytest.raises(ConfigError) as caught:
        build_model(load_config(QUICK, ["model.lamda=1"]), 2)
    assert str(caught.value).startswith(f"{QUICK}:39: model: BiSeNetV2 has no argument 'lamda'")


def rates(schedule: str, steps: int) -> list[float]:
    optimizer, scheduler = build_optimizer(
        load_config(QUICK, [f"lr_scheduler={schedule}"]), torch.nn.Linear(2, 2)
    )
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_paddles_own_arguments_of_schedules_are_obeyed():
    poly = "type: PolynomialDecay, learning_rate: 0.1, power: 1, last_epoch: -1, verbose: false, cycle: false"
    assert rates(f"{{{poly}, decay_steps: 4, end_lr: 0.02}}", 6) == pytest.approx(
        [0.1, 0.08, 0.06, 0.04, 0.02, 0.02]
    )
    assert rates(f"{{{poly}, decay_steps: 2, warmup_iters: 2, warmup_start_lr: 0.05}}", 5) == pytest.approx(
        [0.075, 0.1, 0.1, 0.05, 0.0]
    )
    cosine = "{type: CosineAnnealingDecay, learning_rate: 0.1, T_max: 2, eta_min: 0.05}"
    assert rates(cosine, 3) == pytest.approx([0.1, 0.075, 0.05])
    with pytest.raises(ConfigError, match="2 values, 2 boundaries; PiecewiseDecay takes one value more"):
        rates("{type: PiecewiseDecay, learning_rate: 0.1, boundaries: [1, 2], values: [0.1, 0.01]}", 1)


def test_every_key_that_paddleseg_gives_its_data_sets_is_read(write):
    own = (
        "{type: Dataset, dataset_root: data, train_path: data/train.txt, val_path: data/val.txt, "
        "test_path: data/test.txt, num_classes: 2, img_channels: 3, separator: ' ', ignore_index: 255, "
        "edge: False, mode: train, transforms: [{type: Normalize}]}"
    )
    disc = "{type: OpticDiscSeg, dataset_root: data, mode: val, edge: True, transforms: [{type: Normalize}]}"
    values = load_config(QUICK, [f"train_dataset={own}", f"val_dataset={disc}"]).document.values
    assert values["train_dataset"]["separator"] == " "
    other = "_base_: base.yml\ntrain_dataset: {_inherited_: False, type: SyntheticOpticDisc, count: 3}\n"
    write(QUICK.read_text(), "base.yml")
    assert load_config(write(other)).document.values["train_dataset"] == {
        "type": "SyntheticOpticDisc",
        "count": 3,
    }
