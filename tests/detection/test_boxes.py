import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantrim.detection import Frame, Thresholds, clipped, iou_matrix, letterbox, nms, select, to_corners
from quantrim.errors import ConfigError, DataError


def _corners(values: np.ndarray) -> np.ndarray:
    return to_corners(np.abs(values).astype(np.float32), "xywh")


BOXES = arrays(np.int64, st.tuples(st.integers(1, 12), st.just(4)), elements=st.integers(0, 30)).map(_corners)


def test_iou_of_hand_cases():
    square, shifted, apart = [0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]
    found = iou_matrix(np.array([square], np.float32), np.array([square, shifted, apart], np.float32))
    np.testing.assert_allclose(found, [[1, 1 / 3, 0]])


def test_iou_with_pixel_corners_counts_the_last_pixel():
    one_pixel = np.array([[3, 3, 3, 3]], np.float32)
    assert iou_matrix(one_pixel, one_pixel, offset=1.0) == 1
    assert iou_matrix(one_pixel, one_pixel) == 0


@given(BOXES, BOXES)
@settings(max_examples=50, deadline=None)
def test_iou_is_torchvisions(first, second):
    expected = torchvision.ops.box_iou(torch.from_numpy(first), torch.from_numpy(second)).nan_to_num().numpy()
    np.testing.assert_allclose(iou_matrix(first, second), expected, rtol=1e-5, atol=1e-6)


@given(BOXES, st.sampled_from([0.0, 0.3, 0.45, 0.7]), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_nms_keeps_what_torchvision_keeps(boxes, iou, seed):
    scores = np.random.default_rng(seed).permutation(len(boxes)).astype(np.float32)
    expected = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).numpy()
    np.testing.assert_array_equal(nms(boxes, scores, iou), expected)


def test_selection_suppresses_each_class_for_itself_and_sorts():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores = np.array([[0.6, 0.5], [0.7, 0.0], [0.005, 0.9]], np.float32)
    found = select(boxes, scores, Thresholds(score=0.01, iou=0.5))
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.5])
    np.testing.assert_array_equal(found.labels, [1, 0, 1])
    np.testing.assert_array_equal(found.boxes[2], boxes[0])
    assert len(select(boxes, scores, Thresholds(keep=1))) == 1
    assert len(select(boxes, scores * 0, Thresholds())) == 0


def test_thresholds_are_checked():
    with pytest.raises(ConfigError, match=r"iou is 1\.5"):
        Thresholds(iou=1.5)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (64, 64), (1, 200)])
def test_letterbox_and_back(shape, centre):
    image = np.full((*shape, 3), 200, np.uint8)
    canvas, frame = letterbox(image, 64, 64, centre=centre)
    whole = np.array([[0, 0, shape[1], shape[0]]], np.float32)
    inside = frame.to_canvas(whole)[0].round().astype(int)
    assert canvas.shape == (64, 64, 3)
    assert (canvas[inside[1] : inside[3], inside[0] : inside[2]] == 200).all()
    assert (canvas == 200).all(axis=2).sum() == (inside[2] - inside[0]) * (inside[3] - inside[1])
    assert (canvas[(canvas != 200).all(axis=2)] == 114).all()
    np.testing.assert_allclose(frame.to_image(frame.to_canvas(whole)), whole, atol=1e-3)


def test_boxes_outside_the_image_are_cut():
    frame = Frame(10, 20, 2.0, 2.0, left=4)
    np.testing.assert_allclose(frame.to_image(np.array([[-5, -5, 100, 10]], np.float32)), [[0, 0, 20, 5]])
    np.testing.assert_allclose(clipped(np.array([[-1.0, 3, 30, 9]]), 8, 20), [[0, 3, 20, 8]])


def test_an_empty_image_is_refused():
    with pytest.raises(DataError, match="empty"):
        letterbox(np.zeros((0, 4, 3), np.uint8), 8, 8)
