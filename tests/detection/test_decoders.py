"""Decoders against hand-made heads: an object is written into the maps and must come out again."""

import math

import numpy as np
import pytest
import yaml

from quantrim.detection import (
    BoxesDecoder,
    DflDecoder,
    RowsDecoder,
    SsdDecoder,
    Thresholds,
    YoloV3Decoder,
    YoloXDecoder,
    decoder_from,
    decoder_to_json,
    detect,
)
from quantrim.errors import ConfigError, ModelError

BOX = np.array([20.0, 30.0, 44.0, 50.0], np.float32)  # centre (32, 40), 24 x 20
SIZE = (64, 96)  # height, width
YOLOV3 = YoloV3Decoder(3, (((60, 60), (90, 90)), ((10, 13), (30, 20))), (32, 16))
YOLOX = YoloXDecoder(3, (8, 16))
DFL = DflDecoder(3, 7, (8, 16))
SSD = SsdDecoder(3, (((0.2, 0.3), (0.4, 0.4)), ((0.5, 0.6),)))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _maps(channels, strides):
    return [np.full((2, channels, SIZE[0] // s, SIZE[1] // s), -12.0, np.float32) for s in strides]


def yolov3_heads():
    """The object in image 1, class 2, at stride 16, anchor (30, 20), cell (row 2, column 2)."""
    maps = _maps(2 * 8, (32, 16))
    values = [
        _logit(1e-6),
        _logit(0.5),
        math.log(24 / 30),
        math.log(20 / 20),
        _logit(0.9),
        -12,
        -12,
        _logit(0.8),
    ]
    maps[1][1, 8:, 2, 2] = values
    return maps


def yolox_heads():
    maps = _maps(8, (8, 16))
    maps[0][1, :, 4, 5] = [-1, 1, math.log(3), math.log(2.5), _logit(0.9), -12, -12, _logit(0.8)]
    return maps


def dfl_heads():
    """Point (row 4, column 3) of stride 8 lies at (28, 36): sides 1, 0.75, 2, 1.75 strides."""
    classes, sides = _maps(3, (8, 16)), _maps(32, (8, 16))
    classes[0][1, 2, 4, 3] = _logit(0.72)
    for side, (low, share) in enumerate([(1, 0.0), (0, 0.75), (2, 0.0), (1, 0.75)]):
        logits = np.full(8, -60.0, np.float32)
        logits[low], logits[low + 1] = math.log(max(1 - share, 1e-30)), math.log(max(share, 1e-30))
        sides[0][1, side * 8 : side * 8 + 8, 4, 3] = logits
    return [*classes, *sides]


def ssd_heads():
    """Default box 1 (38.4 x 25.6 pixels) of cell (row 5, column 3) of the 8 x 12 grid: centre (28, 44)."""
    classes = [np.zeros((2, 8, 8, 12), np.float32), np.zeros((2, 4, 4, 6), np.float32)]
    offsets = [np.zeros((2, 8, 8, 12), np.float32), np.zeros((2, 4, 4, 6), np.float32)]
    for one in classes:
        one[:, ::4] = 20  # background
    share = 0.72
    classes[0][1, 4:, 5, 3] = [math.log(1 - share), -60, -60, math.log(share)]
    offsets[0][1, 4:, 5, 3] = [10 * 4 / 38.4, 10 * -4 / 25.6, 5 * math.log(24 / 38.4), 5 * math.log(20 / 25.6)]
    return [*classes, *offsets]


@pytest.mark.parametrize(
    ("decoder", "heads"),
    [(YOLOV3, yolov3_heads), (YOLOX, yolox_heads), (DFL, dfl_heads), (SSD, ssd_heads)],
    ids=lambda value: getattr(value, "type", ""),
)
def test_the_object_written_into_a_head_comes_out(decoder, heads):
    none, found = detect(decoder, heads(), SIZE, Thresholds(score=0.1))
    assert len(none) == 0
    assert found.labels.tolist() == [2]
    np.testing.assert_allclose(found.scores, [0.72], rtol=1e-4)
    np.testing.assert_allclose(found.boxes, [BOX], atol=2e-3)


def test_yolox_in_one_array_with_sigmoids_in_the_file():
    rows = np.concatenate([one.reshape(2, 8, -1) for one in yolox_heads()], axis=2).transpose(0, 2, 1)
    rows[..., 4:] = 1 / (1 + np.exp(-rows[..., 4:]))
    _, found = detect(YoloXDecoder(3, (8, 16), activated=True), [rows], SIZE, Thresholds(score=0.1))
    np.testing.assert_allclose(found.boxes, [BOX], atol=1e-3)


def test_dfl_heads_as_rows_are_the_same():
    rows = [one.reshape(*one.shape[:2], -1).transpose(0, 2, 1) for one in dfl_heads()]
    for got, want in zip(DFL.candidates(rows, SIZE), DFL.candidates(dfl_heads(), SIZE), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_weak_objectness_is_no_object_whatever_the_class_says():
    maps = yolov3_heads()
    maps[1][1, 12, 2, 2] = _logit(0.004)
    assert all(len(one) == 0 for one in detect(YOLOV3, maps, SIZE, Thresholds(score=0.0)))


def test_boxes_of_the_file_in_other_forms():
    boxes = np.array([[[32 / 96, 40 / 64, 24 / 96, 20 / 64]]], np.float32)
    scores = np.array([[[0.1, 0.2, 0.7]]], np.float32)
    decoder = BoxesDecoder(2, "cxcywh", normalized=True, background=True)
    joined = [np.concatenate([boxes, scores], axis=-1)]
    for outputs in ([boxes, scores], joined):
        found = detect(decoder, outputs, SIZE, Thresholds(score=0.3))[0]
        np.testing.assert_allclose(found.boxes, [BOX], rtol=1e-5)
        assert found.labels.tolist() == [1]


def test_rows_of_a_file_that_suppresses_itself():
    rows = np.array([[2, 1, 0.5, *BOX], [0, 0, 0.3, *BOX], [2, 0, 0.9, *BOX]], np.float32)
    found = detect(RowsDecoder(2), [rows], SIZE, batch=4)
    assert [len(one) for one in found] == [1, 0, 2, 0]
    assert found[2].labels.tolist() == [0, 1]
    assert [len(one) for one in detect(RowsDecoder(2), [rows[:0]], SIZE, batch=1)] == [0]


@pytest.mark.parametrize("decoder", [YOLOV3, YOLOX, DFL, SSD, BoxesDecoder(4, "xywh"), RowsDecoder(7)])
def test_a_decoder_survives_yaml(decoder):
    text = yaml.safe_dump(decoder_to_json(decoder), sort_keys=False)
    assert decoder_from(yaml.safe_load(text)) == decoder


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"type": "yolov9", "num_classes": 3}, "yolov9"),
        ({"type": "yolox"}, "num_classes is missing"),
        ({"type": "yolox", "num_classes": "many"}, "num_classes is 'many'"),
        ({"num_classes": 3}, "type"),
    ],
)
def test_what_is_no_decoder_is_named(values, words):
    with pytest.raises(ConfigError, match=words):
        decoder_from(values)


@pytest.mark.parametrize(
    ("decoder", "outputs", "words"),
    [
        (YOLOV3, [np.zeros((1, 16, 2, 3))], "reads 2 outputs"),
        (YOLOV3, [np.zeros((1, 15, 2, 3)), np.zeros((1, 16, 4, 6))], "15 channels"),
        (YOLOX, [np.zeros((1, 120, 7))], "8 values a point"),
        (YOLOX, [np.zeros((1, 119, 8))], "has 120 points, the model gives 119"),
        (SSD, [np.zeros((1, 7, 8, 12)), np.zeros((1, 4, 4, 6)), *[np.zeros((1, 4, 4, 6))] * 2], "7 channels"),
    ],
)
def test_outputs_that_do_not_fit_are_told(decoder, outputs, words):
    with pytest.raises(ModelError, match=words):
        detect(decoder, outputs, SIZE)


@pytest.mark.filterwarnings("error")
def test_sizes_beyond_all_bounds_are_boxes_as_large_as_the_canvas():
    outputs = [np.full((1, 8, 2, 2), 500.0, np.float32)]
    (found,) = detect(YoloV3Decoder(3, (((10.0, 10.0),),), (32,)), outputs, (64, 64), Thresholds(score=0.5))
    assert np.isfinite(found.boxes).all()
    np.testing.assert_allclose(found.boxes[0], [0, 0, 64, 64])
