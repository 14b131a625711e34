"""What is shown of two files' predictions."""

import base64

import cv2
import numpy as np
import pytest
from PIL import Image

from quantrim.errors import ConfigError, ModelError
from quantrim.recipes.comparison import ComparedImage, compare, examples_of_files, examples_of_set
from quantrim.recipes.deployment import Deployment
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.data.optic_disc import OpticDiscImages
from quantrim.vision.data.sample import Sample
from quantrim.vision.palette import PALETTE


def decoded(view: dict) -> np.ndarray:
    content = np.frombuffer(base64.b64decode(view["png_base64"]), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR)[:, :, ::-1]


def test_each_map_of_classes_lies_over_the_picture_and_the_share_of_equal_pixels_is_told():
    data = VisionData(OpticDiscImages(3, 64), "segmentation", 2)
    truth = data.source[0][1]

    def exact(images):
        return np.stack([truth == 0, truth == 1])[None].astype(np.float32)

    def none(images):
        return np.stack([np.ones(truth.shape), np.zeros(truth.shape)])[None].astype(np.float32)

    shown = compare({"FP32": exact, "INT8": none}, examples_of_set(data, 1), "segmentation")
    assert [entry["caption"] for entry in shown] == ["validation picture 0"]
    views = {view["name"]: view for view in shown[0]["views"]}
    assert list(views) == ["truth", "FP32", "INT8"]
    assert views["truth"]["png_base64"] == views["FP32"]["png_base64"] != views["INT8"]["png_base64"]
    assert views["INT8"]["text"] == f"{np.mean(truth == 0):.2%} of the pixels as FP32"
    picture = data.source[0][0]
    expected = (0.6 * picture + 0.4 * PALETTE[truth]).astype(np.uint8)
    np.testing.assert_array_equal(decoded(views["truth"]), expected)


def test_classes_are_told_in_words_of_both_files():
    logits = {"FP32": [0.0, 2.0, 9.0], "INT8": [0.0, 9.0, 2.0]}
    predictors = {name: lambda images, row=row: np.array([row], np.float32) for name, row in logits.items()}
    picture = np.zeros((8, 8, 3), np.uint8)
    example = ComparedImage("a.png", picture, Sample(picture.astype(np.float32)), truth=2)
    ((view,),) = [entry["views"] for entry in compare(predictors, [example], "classification", ("a", "b", "c"))]
    assert view["text"].startswith("truth: c; FP32: c 99.9%, b 0.1%; INT8: b 99.9%, c 0.1%")


def test_files_are_prepared_as_deploy_yaml_says_and_large_ones_shown_small(tmp_path):
    Image.new("RGB", (1200, 600), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
    deployment = Deployment((), "classification", ())
    examples = list(examples_of_files(tmp_path, deployment, 1, grey=True))
    assert [one.caption for one in examples] == ["a.png"]
    assert examples[0].sample.image.shape == (600, 1200, 1)
    shown = compare({"FP32": lambda images: np.zeros((1, 2))}, examples, "classification")
    assert decoded(shown[0]["views"][0]).shape == (240, 480, 3)


def test_what_cannot_be_shown_is_one_clear_error():
    picture = np.zeros((8, 8, 3), np.uint8)
    example = ComparedImage("a", picture, Sample(picture.astype(np.float32)))
    with pytest.raises(ConfigError, match="task 'poses' can't be shown"):
        compare({}, [example], "poses")
    with pytest.raises(ModelError, match="FP32 gives"):
        compare({"FP32": lambda images: np.zeros((1, 10))}, [example], "segmentation")
    with pytest.raises(ModelError, match="INT8 gives"):
        compare({"INT8": lambda images: np.zeros((1, 2, 8, 8))}, [example], "classification")
