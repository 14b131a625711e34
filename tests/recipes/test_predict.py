"""Predictions of images: boxes go back to the image, batches change nothing, records say what was measured."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from quantrim.detection import decoder_from
from quantrim.errors import CheckpointError, ConfigError
from quantrim.recipes.deployment import read_deployment
from quantrim.recipes.fetch import local_file
from quantrim.recipes.predict import Prediction, palette_of, predict_files
from quantrim.vision.data.transforms import transform_named

HALF = transform_named({"type": "Resize", "target_size": [32, 24]})


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), np.full((48, 64, 3), 60 * number, np.uint8))
    return tmp_path / "photos"


def test_boxes_of_the_canvas_are_told_in_pixels_of_the_image(photos, tmp_path):
    decoder = decoder_from({"type": "boxes", "num_classes": 2})

    def run(images):
        boxes = np.tile(np.array([[[4, 6, 20, 18], [0, 0, 3, 3]]], np.float32), (len(images), 1, 1))
        scores = np.tile(np.array([[[0.0, 0.9], [0.1, 0.0]]], np.float32), (len(images), 1, 1))
        return [boxes, scores]

    how = Prediction("detection", (HALF,), ("cat", "dog"), decoder=decoder)
    results, times = predict_files(run, photos, how, tmp_path / "out", batch_size=2)
    assert [result["boxes"] for result in results] == [
        [{"class": "dog", "index": 1, "score": pytest.approx(0.9), "box": [8.0, 12.0, 40.0, 36.0]}]
    ] * 3
    assert len(times) == 2
    drawn = cv2.imread(str(tmp_path / "out/added_prediction/0.png"))
    assert drawn.shape == (48, 64, 3)
    assert drawn.any()


def test_a_detector_without_a_decoder_is_told():
    with pytest.raises(ConfigError, match=r"Deploy\.decoder"):
        Prediction("detection", ())


def test_batches_change_no_prediction(photos, tmp_path):
    def run(images):
        return [np.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], axis=1)]

    how = Prediction("classification", (HALF,), ("bright",))
    one, each = predict_files(run, photos, how, tmp_path, batch_size=1)
    all_at_once, together = predict_files(run, photos, how, tmp_path, batch_size=8)
    assert one == all_at_once
    assert (len(each), len(together)) == (3, 1)
    assert one[2]["classes"][0] == {"class": "bright", "probability": pytest.approx(1.0)}


def test_a_deploy_yaml_says_everything_and_a_wrong_value_its_line(tmp_path):
    path = tmp_path / "deploy.yaml"
    path.write_text(
        "Deploy:\n  model: m.onnx\n  params: x\n  task: detection\n  transforms: [{type: Normalize}]\n"
        "  classes: [1, 2]\n  decoder: {type: yolox, num_classes: 2}\n"
    )
    found = read_deployment(path)
    assert found.model == tmp_path / "m.onnx"
    assert found.class_names == ("1", "2")
    assert found.decoder is not None
    for wrong, words in (
        ("type: yolox", "deploy.yaml:7: Deploy.decoder: decoder: unknown 'yolo'|Deploy.decoder"),
        ("type: Normalize", r"deploy.yaml:5: Deploy.transforms.0: unknown transform"),
    ):
        path.write_text(path.read_text().replace(wrong, wrong[:-1]))
        with pytest.raises(ConfigError, match=words):
            read_deployment(path)


@pytest.mark.parametrize("colors", [[1, 2], [1, 2, 256], [0.5, 1, 2], []])
def test_colours_that_are_none_are_refused(colors):
    with pytest.raises(ConfigError, match="red, green and blue"):
        palette_of(colors)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://x/y.pth", "http and https addresses"),
        ("https://x/", "http and https addresses"),
        ("https://x/model.pdparams", "convert it"),
        ("http://127.0.0.1:1/model.pth", "can't be downloaded"),
    ],
)
def test_addresses_that_give_no_weights_are_one_line(address, words, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=words):
        local_file(address)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
