"""Every transform keeps picture and mask together, whatever the sizes and the random numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.vision.data.color import RandomDistort
from quantrim.vision.data.geometry import (
    PaddingByAspectRatio,
    RandomAffine,
    RandomResizedCrop,
    RandomScaleAspect,
    ScalePadding,
)
from quantrim.vision.data.sample import Sample, apply, undo
from quantrim.vision.data.transforms import TRANSFORMS, transform_named

ARGUMENTS = {
    "Padding": {"target_size": [90, 80]},
    "ResizeByLong": {"long_size": 50},
    "ResizeByShort": {"short_size": 40},
    "RandomPaddingCrop": {"crop_size": [48, 40]},
    "RandomResizedCrop": {"size": 32},
    "CenterCrop": {"size": 32},
    "ResizeRangeScaling": {"min_value": 40, "max_value": 70},
    "RandomAffine": {"size": [64, 48], "translation_offset": 10.0},
}


def discs(height: int, width: int) -> Sample:
    """A white disc on black, and its mask; nearest and linear interpolation agree but at its rim."""
    rows, columns = np.mgrid[:height, :width]
    mask = (np.hypot(rows - 0.45 * height, columns - 0.55 * width) < 0.3 * min(height, width)).astype(np.uint8)
    return Sample(np.repeat(mask[:, :, None] * np.float32(255), 3, axis=2), mask)


#: Transforms of boxes alone, and those that join images.
BOXES_ONLY = {"RandomExpand", "RandomIoUCrop", "Mosaic", "MixUp"}


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - BOXES_ONLY - {"Normalize", "RandomDistort"}))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(40, 90), width=st.integers(40, 90))
def test_picture_and_mask_stay_together(name, seed, height, width):
    transform = transform_named({"type": name} | ARGUMENTS.get(name, {}))
    sample = apply((transform,), discs(height, width), np.random.default_rng(seed))
    assert sample.image.shape == (*sample.mask.shape, 3)
    assert set(np.unique(sample.mask)) <= {0, 1, 255}
    inside = sample.mask != 255
    same = (sample.image[:, :, 0] > 127)[inside] == (sample.mask == 1)[inside]
    assert same.mean() > 0.93


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - BOXES_ONLY))
def test_grey_pictures_keep_their_single_channel(name):
    image = np.random.default_rng(0).uniform(0, 255, (50, 60, 1)).astype(np.float32)
    one = {"mean": [0.5], "std": [0.5]} if name == "Normalize" else {}
    transform = transform_named({"type": name} | ARGUMENTS.get(name, {}) | one)
    assert apply((transform,), Sample(image), np.random.default_rng(1)).image.shape[2] == 1


def test_affine_without_chance_centres_the_picture_and_fits_its_mean_side():
    still = RandomAffine((80, 60), max_rotation=0.0, min_scale_factor=1.0, max_scale_factor=1.0)
    sample = apply((still,), discs(30, 40), np.random.default_rng(0))
    inside = sample.mask != 255
    assert inside.mean() > 0.97
    assert (sample.mask == discs(60, 80).mask)[inside].mean() > 0.98


def test_affine_gives_the_ignored_label_where_there_is_no_picture():
    small = RandomAffine((100, 100), max_rotation=0.0, min_scale_factor=0.5, max_scale_factor=0.5)
    sample = apply((small,), discs(40, 40), np.random.default_rng(0))
    assert (sample.mask[:20] == 255).all()
    assert (sample.image[:20] == 128).all()
    assert (sample.mask[30:70, 30:70] != 255).all()


def test_scale_aspect_keeps_the_size_and_zero_turns_it_off():
    sample, generator = discs(50, 70), np.random.default_rng(0)
    moved = [RandomScaleAspect()(sample, generator).mask for _ in range(8)]
    assert all(mask.shape == (50, 70) for mask in moved)
    assert sum((mask != sample.mask).any() for mask in moved) >= 6
    assert RandomScaleAspect(min_scale=0)(sample, generator) is sample


def test_padding_to_an_aspect_and_to_a_scaled_square_is_undone():
    picture = np.linspace(0, 255, 20 * 50 * 3, dtype=np.float32).reshape(20, 50, 3)
    wide = apply((PaddingByAspectRatio(4.0),), Sample(picture), np.random.default_rng(0))
    assert wide.image.shape == (20, 80, 3)
    square = apply((ScalePadding((100, 100)),), Sample(picture), np.random.default_rng(0))
    assert square.image.shape == (100, 100, 3)
    back = undo(square.image.transpose(2, 0, 1), square.steps)
    assert back.shape == (3, 20, 50)
    assert np.abs(back.transpose(1, 2, 0) - picture).mean() < 2


def test_a_resized_crop_of_a_very_long_picture_is_its_middle_square():
    picture = np.zeros((4, 400, 3), np.float32)
    picture[:, 198:202] = 255
    sample = RandomResizedCrop(8, scale=(0.9, 1.0))(Sample(picture), np.random.default_rng(0))
    np.testing.assert_array_equal(sample.image, np.full((8, 8, 3), 255))


def test_distortion_changes_colours_within_the_legal_range_and_nothing_with_no_chance():
    picture = np.random.default_rng(0).uniform(0, 255, (16, 16, 3)).astype(np.float32)
    always = RandomDistort(brightness_prob=1, contrast_prob=1, saturation_prob=1, hue_prob=1)
    changed = always(Sample(picture), np.random.default_rng(0)).image
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert np.abs(changed - picture).mean() > 5
    never = RandomDistort(brightness_prob=0, contrast_prob=0, saturation_prob=0, hue_prob=0)
    np.testing.assert_array_equal(never(Sample(picture), np.random.default_rng(0)).image, picture)


def test_turning_the_hue_keeps_brightness_and_moves_red_towards_yellow():
    red = np.full((2, 2, 3), (200.0, 20.0, 20.0), np.float32)
    hue = RandomDistort(0, 0, 0, 0, 0, 0, hue_range=60, hue_prob=1)
    results = [hue(Sample(red), np.random.default_rng(seed)).image[0, 0] for seed in range(8)]
    assert all(abs(color.max() - 200) < 0.5 for color in results)
    assert len({int(color[1]) for color in results}) > 3
