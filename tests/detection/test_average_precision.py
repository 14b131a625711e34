"""Hand cases of VOC's metric, and COCO's against what must hold."""

import math

import numpy as np
import pytest

from quantrim.detection import Detections, GroundTruth, box_fidelity, coco_metrics, voc_metric
from quantrim.detection.average_precision import area_under
from quantrim.errors import DataError

A, B, C = [0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 69, 59]  # pixel corners: 10 x 10, 10 x 10, 20 x 10


def found(*rows):
    """Detections of rows (score, label, box)."""
    boxes = np.array([box for _, _, box in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.array([s for s, _, _ in rows], np.float32), np.array([c for _, c, _ in rows], np.int64)
    )


def truth(*rows, difficult=()):
    return GroundTruth.of([box for _, box in rows], [label for label, _ in rows], difficult)


@pytest.mark.parametrize("style", ["11point", "integral", "area"])
def test_all_found_is_one(style):
    metric = voc_metric([found((0.9, 0, A), (0.8, 0, B))], [truth((0, A), (0, B))], 1, style=style)
    assert metric.mean == pytest.approx(1)


def test_the_three_areas_under_one_curve():
    # Hit, miss, hit of 2 wanted: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    detections = [found((0.9, 0, A), (0.8, 0, C), (0.7, 0, B))]
    values = {
        s: voc_metric(detections, [truth((0, A), (0, B))], 1, style=s).mean
        for s in ("11point", "integral", "area")
    }
    assert values["11point"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert values["integral"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert values["area"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_integral_has_no_envelope():
    # Miss, hit, hit: precision 0, 1/2, 2/3; the envelope lifts the 1/2.
    recall, precision = np.array([0, 0.5, 1]), np.array([0, 1 / 2, 2 / 3])
    assert area_under(recall, precision, "integral") == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 3)
    assert area_under(recall, precision, "area") == pytest.approx(2 / 3)
    assert area_under(recall, precision, "11point") == pytest.approx(2 / 3)


def test_an_overlap_of_exactly_the_threshold_is_no_hit():
    half = [0, 0, 9, 4]  # with pixel corners 10 x 5: overlap 1/2 exactly
    assert voc_metric([found((0.9, 0, half))], [truth((0, A))], 1).mean == 0
    assert voc_metric([found((0.9, 0, half))], [truth((0, A))], 1, iou=0.499).mean == pytest.approx(1)


def test_pixel_corners_decide_small_boxes():
    box, other = [0, 0, 2, 2], [0, 0, 2, 1]  # 3x3 and 3x2: 2/3; as edges 2x2 and 2x1: exactly 1/2
    assert voc_metric([found((0.9, 0, other))], [truth((0, box))], 1).mean == pytest.approx(1)
    assert voc_metric([found((0.9, 0, other))], [truth((0, box))], 1, pixel_corners=False).mean == 0


def test_a_second_hit_is_a_false_positive():
    detections = [found((0.9, 0, A), (0.8, 0, A), (0.7, 0, B))]
    metric = voc_metric(detections, [truth((0, A), (0, B))], 1, style="integral")
    assert metric.mean == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_difficult_boxes_are_neither_demanded_nor_punished():
    wanted = [truth((0, A), (0, B), difficult=[False, True])]
    assert voc_metric([found((0.9, 0, A))], wanted, 1, style="area").mean == pytest.approx(1)
    # Two detections on the difficult box, the better one above the good hit: both count as nothing.
    many = [found((0.95, 0, B), (0.94, 0, B), (0.9, 0, A))]
    assert voc_metric(many, wanted, 1, style="area").mean == pytest.approx(1)


def test_a_class_without_ground_truth_is_left_out():
    metric = voc_metric([found((0.9, 0, A), (0.9, 1, B))], [truth((0, A))], 3)
    assert metric.by_class == (pytest.approx(1), None, None)
    assert metric.mean == pytest.approx(1)
    only_difficult = voc_metric([found()], [truth((0, A), difficult=[True])], 1)
    assert only_difficult.by_class == (None,)
    assert only_difficult.mean == 0


def test_detections_are_ranked_over_all_images_and_matched_within_their_own():
    detections = [found((0.5, 0, A)), found((0.9, 0, A))]  # the second image holds nothing there
    metric = voc_metric(detections, [truth((0, A)), truth((0, B))], 1, style="integral")
    assert metric.mean == pytest.approx(0.5 * 0.5)


def test_a_wrong_class_hits_nothing():
    assert voc_metric([found((0.9, 1, A))], [truth((0, A))], 2).mean == 0


def test_counts_of_images_must_agree():
    with pytest.raises(DataError, match="2 images"):
        voc_metric([found(), found()], [truth((0, A))], 1)
    with pytest.raises(DataError, match="1 images"):
        coco_metrics([found()], [], 1)


def _slow_precision(detections, truths, label):
    """VOC2010's area for one class, written as the devkit does it, over dictionaries and loops."""
    entries = sorted(
        (
            (s, i, b)
            for i, d in enumerate(detections)
            for s, c, b in zip(d.scores, d.labels, d.boxes, strict=True)
            if c == label
        ),
        key=lambda entry: -entry[0],
    )
    used, hits = set(), []
    for _, image, box in entries:
        best, where = 0.0, None
        for j, (other, c) in enumerate(zip(truths[image].boxes, truths[image].labels, strict=True)):
            if c != label:
                continue
            w = min(box[2], other[2]) - max(box[0], other[0]) + 1
            h = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if w <= 0 or h <= 0:
                continue
            size = lambda b: (b[2] - b[0] + 1) * (b[3] - b[1] + 1)  # noqa: E731
            overlap = w * h / (size(box) + size(other) - w * h)
            if overlap > best:
                best, where = overlap, (image, j)
        hits.append(best > 0.5 and where not in used)
        if best > 0.5:
            used.add(where)
    wanted = sum(int((t.labels == label).sum()) for t in truths)
    points = [(sum(hits[: k + 1]) / wanted, sum(hits[: k + 1]) / (k + 1)) for k in range(len(hits))]
    area, before = 0.0, 0.0
    for k, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[k:])
        before = recall
    return area


def _random_scene(generator):
    size = generator.integers(8, 30, (6, 2))
    corner = generator.integers(0, 60, (6, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32), generator.integers(0, 2, 6)


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_that_of_the_slow_devkit(seed):
    generator = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(8):
        boxes, labels = _random_scene(generator)
        truths.append(GroundTruth.of(boxes, labels))
        moved = boxes + generator.integers(-4, 5, boxes.shape)
        detections.append(Detections(moved, generator.random(6).astype(np.float32), labels))
    metric = voc_metric(detections, truths, 2, style="area")
    expected = [_slow_precision(detections, truths, label) for label in range(2)]
    np.testing.assert_allclose(metric.by_class, expected, rtol=1e-9)
    assert voc_metric(detections, truths, 2, style="integral").mean <= metric.mean + 1e-12


def test_coco_of_exact_boxes_is_one_and_of_none_zero():
    wanted = [truth((0, A), (1, B)), truth((1, C))]
    exact = [found((0.9, 0, A), (0.8, 1, B)), found((0.7, 1, C))]
    metrics = coco_metrics(exact, wanted, 2)
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["AR100"] == pytest.approx(1)
    assert math.isnan(metrics["AP_large"])
    assert coco_metrics([found(), found()], wanted, 2)["AP"] == 0
    assert math.isnan(coco_metrics([found()], [truth()], 2)["AP"])


def test_coco_counts_overlaps_of_half_to_nineteen_twentieths():
    # 10 x 10 against 10 x 8: overlap 0.8 hits at 0.5, 0.55, ..., 0.8, seven of ten thresholds.
    metrics = coco_metrics([found((0.9, 0, [0, 0, 10, 8]))], [truth((0, [0, 0, 10, 10]))], 1)
    assert metrics["AP"] == pytest.approx(0.7)
    assert metrics["AP50"] == pytest.approx(1)


def test_a_crowd_is_not_punished():
    wanted = [truth((0, [0, 0, 10, 10]), (0, [40, 40, 80, 80]), difficult=[False, True])]
    metrics = coco_metrics([found((0.9, 0, [45, 45, 60, 60]), (0.8, 0, [0, 0, 10, 10]))], wanted, 1)
    assert metrics["AP"] == pytest.approx(1)


def test_fidelity_of_itself_is_whole_and_of_nothing_none():
    scene = [found((0.9, 0, A), (0.6, 1, B), (0.1, 1, C))]
    same = box_fidelity(scene, scene, 2)
    assert (same.ap, same.kept, same.mean_iou, same.boxes, same.reference_boxes) == (
        pytest.approx(1),
        1,
        1,
        2,
        2,
    )
    empty = box_fidelity(scene, [found()], 2)
    assert (empty.ap, empty.kept, empty.boxes) == (0, 0, 0)
    assert box_fidelity([found()], scene, 2).kept == 1


def test_fidelity_sees_lost_moved_and_new_boxes():
    reference = [found((0.9, 0, A), (0.8, 0, B))]
    candidate = [found((0.9, 0, A), (0.29, 0, B), (0.5, 0, C), (0.5, 1, A))]
    result = box_fidelity(reference, candidate, 2)
    assert (result.kept, result.boxes, result.reference_boxes) == (0.5, 3, 2)
    assert result.mean_iou == 1
