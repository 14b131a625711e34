import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.errors import ConfigError, DataError
from quantrim.images import read_image
from quantrim.vision.config import load_config
from quantrim.vision.data.binary import evaluate_binary, read_binary, write_binary
from quantrim.vision.data.cifar import cifar10
from quantrim.vision.data.color import Normalize
from quantrim.vision.data.datasets import Arrays, VisionData, listed_labels, listed_masks
from quantrim.vision.data.geometry import (
    Padding,
    RandomHorizontalFlip,
    RandomPaddingCrop,
    RandomRotation,
    Resize,
    ResizeByLong,
)
from quantrim.vision.data.optic_disc import OpticDiscImages, write_optic_disc
from quantrim.vision.data.sample import Sample, apply, undo
from quantrim.vision.data.transforms import transform_named
from quantrim.vision.evaluate import evaluate, torch_predictor
from quantrim.vision.views import Views, multi_scale, sliding_window, views_of

GENERATOR = np.random.default_rng(0)


def test_generated_pictures_depend_on_seed_and_index_alone():
    one, two = OpticDiscImages(5, 64, seed=3)[2], OpticDiscImages(9, 64, seed=3)[2]
    np.testing.assert_array_equal(one[0], two[0])
    assert (OpticDiscImages(5, 64, seed=4)[2][0] != one[0]).any()


def test_every_generated_picture_has_one_disc_of_plausible_size_brighter_than_its_surroundings():
    brighter = 0
    for picture, mask in (OpticDiscImages(12, 128, seed=1)[i] for i in range(12)):
        assert 0.005 < mask.mean() < 0.06
        lit = picture.sum(axis=2) > 30
        brighter += picture[mask == 1].mean() > picture[(mask == 0) & lit].mean()
    assert brighter >= 11


def test_a_written_set_reads_back_in_optic_disc_seg_layout(tmp_path):
    write_optic_disc(tmp_path, train=2, val=1, test=1, size=48)
    listed = listed_masks(tmp_path, tmp_path / "train_list.txt")
    picture, mask = listed[1]
    expected, truth = OpticDiscImages(2, 48, 0)[1]
    np.testing.assert_array_equal(picture, expected)
    np.testing.assert_array_equal(mask, truth)


def test_masks_follow_every_geometric_transform():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 1
    image = np.repeat(mask[:, :, None] * 255.0, 3, axis=2).astype(np.float32)
    chain = (
        RandomHorizontalFlip(1.0),
        RandomRotation(20, (0, 0, 0), 0),
        Resize((90, 50)),
        RandomPaddingCrop((64, 64), (0, 0, 0), 0),
    )
    sample = apply(chain, Sample(image, mask), GENERATOR)
    assert sample.image.shape[:2] == sample.mask.shape == (64, 64)
    assert np.mean((sample.image[:, :, 0] > 127) == (sample.mask == 1)) > 0.97


def test_undo_brings_scores_back_to_the_size_of_a_picture_that_is_not_square():
    picture = np.random.default_rng(0).uniform(0, 255, (37, 91, 3)).astype(np.float32)
    smooth = apply((Resize((12, 6)), Resize((91, 37))), Sample(picture), GENERATOR).image
    sample = apply((ResizeByLong(120), Padding((128, 64))), Sample(smooth), GENERATOR)
    back = undo(sample.image.transpose(2, 0, 1), sample.steps)
    assert back.shape == (3, 37, 91)
    assert np.abs(back.transpose(1, 2, 0) - smooth).mean() < 2


def test_unknown_transforms_and_arguments_get_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'Resize'"):
        transform_named({"type": "Resise"})
    with pytest.raises(ConfigError, match="did you mean 'target_size'"):
        transform_named({"type": "Resize", "target_sise": [1, 1]})


class Threshold(nn.Module):
    """Class 1 where the picture is bright: a perfect segmenter of the masks below."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([-x[:, :1], x[:, :1]], dim=1)]


def segments() -> VisionData:
    class Source:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int):
            mask = np.zeros((32, 48), np.uint8)
            mask[4 : 16 + index, 8:40] = 1
            return np.repeat(mask[:, :, None] * 255, 3, axis=2).astype(np.uint8), mask

    return VisionData(Source(), "segmentation", 2, (Resize((96, 64)), Normalize()))


def test_predictions_are_judged_at_the_size_of_the_labels():
    metrics = evaluate(torch_predictor(Threshold()), segments())
    assert metrics["mIoU"] > 0.97
    assert metrics["images"] == 3


def test_sliding_windows_and_scales_cover_every_pixel():
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    predict = torch_predictor(Threshold())
    slid = sliding_window(predict, (32, 32), (24, 24))(images)
    np.testing.assert_allclose(slid, predict(images), atol=1e-6)
    smooth = np.broadcast_to(np.linspace(-1, 1, 96, dtype=np.float32), (1, 3, 64, 96)).copy()
    scaled = multi_scale(predict, (0.5, 1.0, 2.0), flip_horizontal=True, flip_vertical=True)(smooth)
    assert np.mean(scaled.argmax(1) == predict(smooth).argmax(1)) > 0.97


def test_the_binary_format_round_trips_and_damage_is_told(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (7, 8, 8, 3), dtype=np.uint8)
    data = VisionData(Arrays(pictures, np.arange(7) % 3), "classification", 3, (Normalize(),))
    assert write_binary(tmp_path / "d.bin", data) == (7, 3, 8, 8)
    raw = (tmp_path / "d.bin").read_bytes()
    assert np.frombuffer(raw, "<i8", 1)[0] == 7
    images, labels = read_binary(tmp_path / "d.bin", (3, 8, 8))
    np.testing.assert_array_equal(labels, np.arange(7) % 3)
    np.testing.assert_allclose(images[4], data[4][0].numpy())
    for bad in (raw[:-5], raw[:4]):
        (tmp_path / "bad.bin").write_bytes(bad)
        with pytest.raises(DataError, match=r"bad\.bin"):
            read_binary(tmp_path / "bad.bin", (3, 8, 8))
    with pytest.raises(DataError, match="another shape"):
        read_binary(tmp_path / "d.bin", (3, 9, 9))


def test_the_binary_format_refuses_what_it_can_t_hold_and_leaves_no_file(tmp_path):
    masks = segments()
    with pytest.raises(DataError, match="one label an image"):
        write_binary(tmp_path / "d.bin", masks)
    mixed = VisionData(Arrays(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2)), "classification", 2, (Odd(),))
    with pytest.raises(DataError, match="image 1 has shape"):
        write_binary(tmp_path / "d.bin", mixed)
    assert not list(tmp_path.iterdir())


class Odd:
    """Gives pictures of another width each time."""

    width = 3

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        self.width += 1
        return Sample(sample.image[:, : self.width])


def test_batches_that_warm_up_are_judged_but_not_timed():
    images, labels = np.zeros((6, 1, 2, 2), np.float32), np.zeros(6, np.int64)

    def slow_at_first(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        time.sleep(0.2 if len(calls) == 1 else 0)
        return np.tile([1.0, 0.0], (len(batch), 1))

    calls: list[int] = []
    metrics = evaluate_binary(slow_at_first, images, labels, batch_size=2, skip_batch_num=1)
    assert metrics["images_per_second"] > 100
    assert (metrics["top1"], metrics["images"]) == (1, 6)
    calls.clear()
    assert evaluate_binary(slow_at_first, images, labels, batch_size=2, batch_num=1)["images"] == 2
    with pytest.raises(DataError, match="labels 5 to 5"):
        evaluate_binary(slow_at_first, images, labels + 5)


def test_views_see_the_picture_from_all_four_sides():
    seen = []

    def predict(images: np.ndarray) -> np.ndarray:
        seen.append(images.copy())
        return images[:, :2]

    image = np.random.default_rng(0).standard_normal((1, 3, 32, 64)).astype(np.float32)
    scores = Views(flip_horizontal=True, flip_vertical=True).of(predict)(image)
    expected = [image, image[..., ::-1], image[:, :, ::-1], image[:, :, ::-1, ::-1]]
    assert len(seen) == 4
    for view, picture in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(view, picture)
    soft = np.exp(image[:, :2]) / np.exp(image[:, :2]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, 4 * soft, rtol=1e-5)


def test_views_of_classifiers_are_summed_and_of_arg_max_refused():
    image = np.zeros((2, 3, 32, 32), np.float32)
    summed = Views(flip_horizontal=True).of(lambda x: np.tile(np.float32([0, 3]), (len(x), 1)))(image)
    assert summed.argmax(axis=1).tolist() == [1, 1]
    for views in (Views(flip_vertical=True), Views(crop_size=(16, 16))):
        with pytest.raises(ConfigError, match="arg max"):
            views.of(lambda x: np.zeros((len(x), 32, 32), np.int64))(image)
    with pytest.raises(ConfigError, match="segmentation"):
        Views(crop_size=(16, 16)).of(lambda x: np.zeros((len(x), 2), np.float32))(image)


TEST_CONFIG = """
_base_: {base}
test_config:
  aug_eval: True
  scales: [0.5, 1.0]
  flip_horizontal: True
  is_slide: True
  crop_size: [64, 32]
  stride: [32, 32]
"""


def test_test_config_of_paddleseg_is_respected_and_its_mistakes_are_told(tmp_path):
    base = Path(__file__).parents[2] / "configs/quick_start/bisenet_synthetic_disc_256x256.yml"
    path = tmp_path / "c.yml"
    path.write_text(TEST_CONFIG.format(base=base))
    views = views_of(load_config(path))
    assert views == Views((0.5, 1.0), True, False, (64, 32), (32, 32))
    assert views.changed(scales=(1.0,), flip_horizontal=False, stride=None) == Views(
        (1.0,), False, False, (64, 32), (32, 32)
    )
    assert views_of(load_config(path, ["test_config.aug_eval=False", "test_config.is_slide=False"])) == Views()
    mistakes = {
        "flip_horizonal=1": "did you mean 'flip_horizontal'",
        "scales=[0]": r"scales.0: is 0; it must be greater than 0",
        "crop_size=[5]": r"crop_size.1: is missing",
        "crop_size=[]": r"crop_size.0: is missing",
        "crop_size=": "needs a crop_size",
    }
    for change, words in mistakes.items():
        with pytest.raises(ConfigError, match=words) as caught:
            views_of(load_config(path, [f"test_config.{change}"]))
        assert "c.yml" in str(caught.value)


def test_the_last_partial_batch_counts_by_its_images():
    images, labels = np.zeros((5, 1, 2, 2), np.float32), np.array([0, 0, 0, 0, 1])
    metrics = evaluate_binary(lambda x: np.tile([1.0, 0.0], (len(x), 1)), images, labels, batch_size=4)
    assert metrics["top1"] == pytest.approx(0.8)
    assert metrics["images"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 1 2\n", "line 1 has 3 columns"),
        ("", "empty"),
        ("missing.png 1\n", "does not exist"),
        ("x y\n", "no number"),
    ],
)
def test_bad_lists_are_told(tmp_path, text, message):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        listed_labels(tmp_path, tmp_path / "l.txt")


def test_unreadable_pictures_and_truncated_sets_are_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="can't be decoded"):
        read_image(tmp_path / "a.png")
    (tmp_path / "test_batch.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(DataError, match="truncated"):
        cifar10(tmp_path, "val")
