"""Boxes go where their objects go: through every transform, in joined images, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.errors import ConfigError
from quantrim.vision.data.datasets import Kept, VisionData, training_batches
from quantrim.vision.data.objects import Objects, joined
from quantrim.vision.data.sample import Sample, apply, undo_boxes
from quantrim.vision.data.scenes import SHAPES, Scenes, natural_ground, photographs_in
from quantrim.vision.data.transforms import transform_named

MOVING = [
    {"type": "Resize", "target_size": [70, 90]},
    {"type": "ResizeByLong", "long_size": 77},
    {"type": "Letterbox", "target_size": [96, 64]},
    {"type": "RandomHorizontalFlip", "prob": 1.0},
    {"type": "RandomVerticalFlip", "prob": 1.0},
    {"type": "RandomPaddingCrop", "crop_size": [48, 56]},
    {"type": "RandomScaleAspect", "min_scale": 0.4},
    {"type": "RandomAffine", "size": [80, 80], "max_rotation": 0.0},
    {"type": "RandomExpand", "prob": 1.0},
    {"type": "RandomIoUCrop"},
    {"type": "Mosaic", "target_size": [90, 90]},
]


def block(height: int, width: int, seed: int = 0) -> Sample:
    """A white block on black, with its box."""
    generator = np.random.default_rng(seed)
    x, y = int(generator.uniform(5, width / 2)), int(generator.uniform(5, height / 2))
    w, h = int(generator.uniform(12, width / 3)), int(generator.uniform(12, height / 3))
    image = np.zeros((height, width, 3), np.float32)
    image[y : y + h, x : x + w] = 255
    return Sample(image, objects=Objects.of([[x, y, x + w, y + h]], [1]))


def seen_box(image: np.ndarray) -> np.ndarray:
    white = image[:, :, 0] > 160
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


@pytest.mark.parametrize("spec", MOVING, ids=lambda spec: spec["type"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(60, 90), width=st.integers(60, 90))
def test_a_box_stays_on_its_object(spec, seed, height, width):
    dark = Sample(np.zeros((40, 40, 3), np.float32), objects=Objects.of([], []))
    moved = apply(
        [transform_named(spec)], block(height, width, seed), np.random.default_rng(seed), lambda: dark
    )
    assert moved.image.dtype == np.float32
    for box in moved.objects.boxes:
        np.testing.assert_allclose(box, seen_box(moved.image), atol=2.1)
    if spec["type"] in ("Resize", "ResizeByLong", "Letterbox", "RandomHorizontalFlip", "RandomVerticalFlip"):
        assert len(moved.objects) == 1


@pytest.mark.parametrize("spec", MOVING[:3], ids=lambda spec: spec["type"])
def test_boxes_come_back_to_the_original_image(spec):
    start = block(75, 66)
    moved = apply([transform_named(spec)], start, np.random.default_rng(0))
    back = undo_boxes(moved.objects.boxes, moved.steps, moved.image.shape[:2])
    np.testing.assert_allclose(back, start.objects.boxes, atol=0.5)


def test_mixup_blends_images_and_weighs_objects():
    mixed = apply(
        [transform_named({"type": "MixUp", "prob": 1.0})],
        block(60, 80, 1),
        np.random.default_rng(0),
        lambda: block(70, 50, 2),
    )
    assert mixed.image.shape == (70, 80, 3)
    assert mixed.objects.weights.sum() == pytest.approx(1)
    assert mixed.image.max() <= 255.01


def test_joining_is_no_preprocessing():
    with pytest.raises(ConfigError, match="Mosaic joins images"):
        apply([transform_named({"type": "Mosaic"})], block(60, 60), np.random.default_rng(0))


def test_a_mask_is_refused_by_what_moves_boxes():
    sample = Sample(np.zeros((9, 9, 3), np.float32), np.zeros((9, 9), np.uint8))
    with pytest.raises(ConfigError, match="moves boxes"):
        apply([transform_named({"type": "RandomExpand", "prob": 1.0})], sample, np.random.default_rng(0))


def test_cutting_drops_what_is_hardly_seen():
    objects = Objects.of([[-30, 0, 10, 10], [-5, 0, 15, 10], [0, 0, 1, 30]], [0, 1, 2])
    assert objects.cut(40, 40).labels.tolist() == [0, 1]
    np.testing.assert_array_equal(objects.cut(40, 40).boxes[0], [0, 0, 10, 10])
    assert len(joined([objects, objects])) == 6


def test_rows_hold_the_largest_objects_in_order():
    objects = Objects.of([[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 5, 5]], [3, 4, 5])
    assert objects.rows(2)[:, 0].tolist() == [4, 5]
    rows = objects.rows(5)
    assert rows[:, 0].tolist() == [3, 4, 5, -1, -1]
    assert rows[:3, 5].tolist() == [1, 1, 1]


def test_scenes_are_functions_of_seed_and_index():
    image, objects = Scenes(5, 64, seed=3)[2]
    again, same = Scenes(9, 64, seed=3)[2]
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(objects.boxes, same.boxes)
    other, _ = Scenes(5, 64, seed=4)[2]
    assert (image != other).any()
    with pytest.raises(IndexError):
        Scenes(5, 64)[5]


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_scenes_hold_boxes_within_the_image(difficulty):
    scenes = Scenes(40, 96, difficulty=difficulty)
    labels, hard, count = set(), 0, 0
    for index in range(len(scenes)):
        image, objects = scenes[index]
        assert image.shape == (96, 96, 3)
        assert image.dtype == np.uint8
        assert (objects.boxes >= 0).all()
        assert (objects.boxes <= 96).all()
        assert ((objects.boxes[:, 2:] - objects.boxes[:, :2]) >= 1).all()
        labels |= set(objects.labels.tolist())
        hard, count = hard + int(objects.difficult.sum()), count + len(objects)
    assert labels == set(range(len(SHAPES)))
    assert hard < count / 2
    if difficulty == 1.0:
        assert hard > 0


def test_the_ground_has_the_spectrum_of_photographs():
    """Power falls with frequency: an octave lower holds several times the energy."""
    ground = natural_ground(np.random.default_rng(0), 128).mean(axis=2)
    power = np.abs(np.fft.fft2(ground - ground.mean())) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    low, high = (power[(radius >= a) & (radius < 2 * a)].mean() for a in (0.03, 0.12))
    assert low > 8 * high


def test_grounds_from_a_folder(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((80, 120, 3), (0, 0, 250), np.uint8)).save(tmp_path / "a.png")
    scenes = Scenes(1, 64, difficulty=0.0, photographs=photographs_in(tmp_path))
    image, _ = scenes[0]
    assert (image[:, :, 2] > image[:, :, 0]).mean() > 0.3
    with pytest.raises(Exception, match=r"no \.jpg or \.png"):
        photographs_in(tmp_path / "none")


def test_a_batch_of_several_sizes_has_one_side_and_is_the_same_again():
    data = VisionData(
        Kept(Scenes(6, 64)), "detection", len(SHAPES), (transform_named({"type": "Normalize"}),),
        max_objects=9, batch_sides=(48, 64, 80),
    )  # fmt: skip
    sides = set()
    for (images, rows), (same, _) in zip(
        training_batches(data, 2, 6), training_batches(data, 2, 6), strict=True
    ):
        torch.testing.assert_close(images, same)
        assert rows.shape == (2, 9, 6)
        assert rows[..., 1:5].max() <= images.shape[-1]
        sides.add(images.shape[-1])
    assert len(sides) > 1
