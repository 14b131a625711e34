"""train → evaluate → export → ptq → evaluate on the engine → predict, as a user types them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.vision.data.optic_disc import OpticDiscImages

CONFIG = str(Path(__file__).parents[2] / "configs/quick_start/bisenet_synthetic_disc_256x256.yml")
SMALL = [part for key in ("train", "val") for part in (
    "--set", f"{key}_dataset.size=64", "--set", f"{key}_dataset.count=8")]  # fmt: skip


def run(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json", "-"])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run("train", "-c", CONFIG, *SMALL, "--iters", 2, "--batch-size", 4, "--save-dir", folder, "--device", "cpu")
    return folder


def test_training_leaves_weights_checkpoint_and_record(trained):
    assert (trained / "best_model" / "model.pth").is_file()
    assert (trained / "iter_2" / "state.pth").is_file()
    assert json.loads((trained / "run.json").read_text())["result"]["iterations"] == 2


def test_weights_and_the_exported_file_have_the_same_metrics(trained, tmp_path):
    weights = trained / "best_model" / "model.pth"
    run("export", "-c", CONFIG, *SMALL, "--weights", weights, "-o", tmp_path / "m.onnx")
    assert "transforms" in (tmp_path / "deploy.yaml").read_text()
    torch_metrics = run("evaluate", "-c", CONFIG, *SMALL, "--weights", weights)["metrics"]
    for engine in ("openvino", "onnxruntime"):
        metrics = run("evaluate", "-c", CONFIG, *SMALL, "--model", tmp_path / "m.onnx", "--engine", engine)
        assert metrics["metrics"]["mIoU"] == pytest.approx(torch_metrics["mIoU"], abs=0.002)


def test_an_argmax_file_gives_classes(trained, tmp_path):
    weights = trained / "best_model" / "model.pth"
    run(
        "export", "-c", CONFIG, *SMALL, "--weights", weights, "-o", tmp_path / "m.onnx", "--output-op", "argmax"
    )
    assert run("evaluate", "-c", CONFIG, *SMALL, "--model", tmp_path / "m.onnx")["metrics"]["images"] == 8


def test_a_tuned_file_is_evaluated_like_any_other(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = trained / "best_model" / "model.pth"
    result = run(
        "export", "-c", CONFIG, *SMALL, "--weights", weights, "-o", tmp_path / "m.onnx", "--tune",
        "--tune-seconds", "1", "--engine", "openvino", "--input-shape", "1,3,64,64",
    )  # fmt: skip
    assert result["tuning"]["winner"] in ("FP32", "BF16")
    assert (tmp_path / "quantrim" / "tuning.json").is_file()
    assert run("evaluate", "-c", CONFIG, *SMALL, "--model", tmp_path / "m.onnx")["metrics"]["images"] == 8


def test_predictions_are_written_as_pictures(trained, tmp_path):
    picture, _ = OpticDiscImages(1, 64)[0]
    cv2.imwrite(str(tmp_path / "eye.png"), picture[:, :, ::-1])
    weights = trained / "best_model" / "model.pth"
    run(
        "predict",
        "-c",
        CONFIG,
        "--weights",
        weights,
        "--images",
        tmp_path / "eye.png",
        "--save-dir",
        tmp_path / "out",
    )
    for kind in ("added_prediction", "pseudo_color_prediction"):
        assert cv2.imread(str(tmp_path / "out" / kind / "eye.png")).shape == (64, 64, 3)


def test_pictures_of_one_name_in_two_folders_keep_apart_and_the_palette_holds_the_classes(trained, tmp_path):
    for index, name in enumerate(("left", "right")):
        (tmp_path / "in" / name).mkdir(parents=True)
        picture, _ = OpticDiscImages(2, 64)[index]
        cv2.imwrite(str(tmp_path / "in" / name / "eye.png"), picture[:, :, ::-1])
    weights = trained / "best_model" / "model.pth"
    shown = run("predict", "-c", CONFIG, "--weights", weights, "--images", tmp_path / "in", "--save-dir",
                tmp_path / "out", "--flip", "--crop-size", "32,32")["results"]  # fmt: skip
    for name, result in zip(("left", "right"), shown, strict=True):
        with Image.open(tmp_path / "out" / "pseudo_color_prediction" / name / "eye.png") as image:
            assert image.mode == "P"
            share = float((np.asarray(image) == 1).mean())
        assert share == pytest.approx(result["area"].get("optic disc", 0.0))


def test_flips_scales_and_windows_change_the_metrics_and_test_config_sets_them_too(trained):
    common = ["evaluate", "-c", CONFIG, *SMALL, "--weights", trained / "best_model" / "model.pth"]
    plain, joined = run(*common), run(*common, "--flip", "--flip-vertical", "--scales", "0.5,1")
    assert plain["metrics"] != joined["metrics"]
    sets = [part for change in ("aug_eval=1", "flip_horizontal=1", "flip_vertical=1", "scales=[0.5, 1.0]")
            for part in ("--set", f"test_config.{change}")]  # fmt: skip
    assert run(*common, *sets)["metrics"] == joined["metrics"]
    windows = run(*common, "--crop-size", "32,32", "--stride", "16,16")
    assert windows["metrics"] != plain["metrics"]


def test_a_data_set_goes_through_the_binary_file_to_the_same_top1(tmp_path):
    config = tmp_path / "c.yml"
    config.write_text(CLASSIFY.format(root=write_classes(tmp_path / "data")))
    run("train", "-c", config, "--save-dir", tmp_path / "run", "--device", "cpu")
    weights = tmp_path / "run" / "best_model" / "model.pth"
    run("export", "-c", config, "--weights", weights, "-o", tmp_path / "m.onnx")
    assert run("binarize", "-c", config, "-o", tmp_path / "d.bin")["shape"] == [6, 3, 32, 32]
    assert (tmp_path / "d.bin").stat().st_size == 8 + 6 * (3 * 32 * 32 * 4 + 8)
    direct = run("evaluate", "-c", config, "--model", tmp_path / "m.onnx")["metrics"]
    binary = run("evaluate", "--binary", tmp_path / "d.bin", "--model", tmp_path / "m.onnx", "--batch-size", 4,
                 "--skip-batch-num", 1, "--engine", "onnxruntime")["metrics"]  # fmt: skip
    assert binary["top1"] == direct["top1"]
    assert binary["images"] == 6
    assert binary["images_per_second"] > 0
    limited = run("evaluate", "--binary", tmp_path / "d.bin", "--model", tmp_path / "m.onnx", "--batch-size", 2,
                  "--batch-num", 2)["metrics"]  # fmt: skip
    assert limited["images"] == 4


CLASSIFY = """
batch_size: 3
epochs: 1
train_dataset: &data
  type: ImageFolder
  dataset_root: {root}
  transforms: [{{type: Resize, target_size: [32, 32]}}, {{type: Normalize}}]
val_dataset: {{<<: *data, mode: train}}
learning_rate: {{value: 0.01}}
model: {{type: MobileNetV1, scale: 0.25, small_input: true}}
"""


def write_classes(root: Path) -> Path:
    for name, value in (("dark", 40), ("light", 200)):
        for index in range(3):
            path = root / "train" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((20, 24, 3), value + index, np.uint8))
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--binary", "d.bin"], "give --model"),
        (["--binary", "d.bin", "--model", "m.onnx", "-c", CONFIG], "no --config"),
        ([], "give --config, or --binary"),
        (["-c", CONFIG, "--weights", "w.pth", "--model", "m.onnx"], "either --weights or --model"),
    ],
)
def test_options_that_exclude_each_other_are_told(arguments, words):
    assert words in str(CliRunner().invoke(app, ["evaluate", *arguments]).exception)


def test_neither_or_both_of_weights_and_model_is_an_error():
    result = CliRunner().invoke(app, ["evaluate", "-c", CONFIG])
    assert "either --weights or --model" in str(result.exception)
