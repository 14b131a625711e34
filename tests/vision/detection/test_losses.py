"""Losses of detectors: hand cases, and that a small model learns a few images by heart."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from quantrim.detection import DflDecoder, SsdDecoder, YoloV3Decoder, YoloXDecoder, detect
from quantrim.errors import ConfigError
from quantrim.vision.detection import (
    detection_loss,
    gfl_loss,
    simota,
    ssd_loss,
    ssd_match,
    yolov3_loss,
    yolox_loss,
)

YOLOV3 = YoloV3Decoder(2, (((40, 40),), ((12, 12),)), (32, 16))
BOX = [33.0, 17.0, 45.0, 31.0]  # centre (39, 24)


def rows(*objects, count=4):
    """Rows (1, count, 6) of objects (class, box)."""
    table = torch.zeros(1, count, 6)
    table[..., 0] = -1
    for place, (label, box) in enumerate(objects):
        table[0, place] = torch.tensor([label, *box, 1.0])
    return table


def empty_maps(channels, fill=-20.0):
    return [torch.full((1, channels, 2, 2), fill), torch.full((1, channels, 4, 4), fill)]


def test_yolov3_of_a_perfect_head_is_nearly_nothing():
    maps = empty_maps(7)
    maps[1][0, :, 1, 2] = torch.tensor(
        [math.log(7 / 9), 0.0, math.log(12 / 12), math.log(14 / 12), 20.0, -20.0, 20.0]
    )
    entropy = -(7 / 16 * math.log(7 / 16) + 9 / 16 * math.log(9 / 16)) + math.log(2)
    small = 2 - 12 * 14 / 64**2
    found = yolov3_loss(maps, rows((1, BOX)), YOLOV3)
    assert float(found) == pytest.approx(small * entropy, rel=1e-4)


def test_yolov3_leaves_candidates_alone_that_overlap_an_object_without_learning_it():
    maps = empty_maps(7)
    maps[1][0, :, 1, 1] = torch.tensor([9.0, 0.0, 0.0, math.log(14 / 12), 3.0, -20, -20])
    wanted = rows((1, [33.0, 17.0, 45.0, 31.0]))
    loud = yolov3_loss(maps, wanted, YOLOV3, ignore_thresh=1.0)
    calm = yolov3_loss(maps, wanted, YOLOV3, ignore_thresh=0.2)
    assert float(loud - calm) == pytest.approx(math.log1p(math.exp(3)), rel=1e-3)


def test_yolov3_label_smoothing_moves_the_targets():
    maps = [torch.zeros(1, 7, 2, 2), torch.zeros(1, 7, 4, 4)]
    plain = yolov3_loss(maps, rows((1, BOX)), YOLOV3)
    smooth = yolov3_loss(maps, rows((1, BOX)), YOLOV3, label_smooth=True)
    assert float(plain) == pytest.approx(float(smooth))  # at logit 0 every target costs log 2
    maps[1][:, 6] = 5.0
    assert float(yolov3_loss(maps, rows((1, BOX)), YOLOV3, label_smooth=True)) > float(
        yolov3_loss(maps, rows((1, BOX)), YOLOV3)
    )


def test_simota_gives_an_object_its_cheapest_candidates():
    centres = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [60.0, 60.0]])
    steps = torch.full((4, 1), 8.0)
    truth, labels = torch.tensor([[0.0, 0.0, 24.0, 8.0]]), torch.tensor([0])
    boxes = torch.tensor([[0, 0, 24, 8], [0, 0, 24, 8], [0, 0, 12, 8], [50, 50, 70, 70]], dtype=torch.float32)
    scores = torch.tensor([[0.9], [0.8], [0.9], [0.99]])
    found = simota(boxes, scores, centres, steps, truth, labels)  # overlaps 1 + 1 + 0.5: two candidates
    assert found.points.tolist() == [0, 1]
    assert found.overlaps.tolist() == [1.0, 1.0]


def test_simota_gives_a_candidate_to_one_object_only():
    centres, steps = torch.tensor([[8.0, 8.0]]), torch.tensor([[8.0]])
    truth = torch.tensor([[0.0, 0.0, 16.0, 16.0], [2.0, 2.0, 16.0, 16.0]])
    found = simota(truth[1:], torch.tensor([[0.5, 0.5]]), centres, steps, truth, torch.tensor([0, 1]))
    assert found.objects.tolist() == [1]
    nothing = simota(truth[1:], torch.tensor([[0.5, 0.5]]), centres + 900, steps, truth, torch.tensor([0, 1]))
    assert len(nothing.points) == 0


def test_ssd_matches_by_overlap_and_leaves_no_object_without_a_box():
    priors = torch.tensor([[0, 0, 10, 10], [0, 0, 12, 10], [40, 40, 80, 80]], dtype=torch.float32)
    truth = torch.tensor([[0, 0, 11, 10], [40, 40, 50, 50]], dtype=torch.float32)
    assert ssd_match(priors, truth).tolist() == [0, 0, 1]
    assert ssd_match(priors, truth[:0]).tolist() == [-1, -1, -1]


HEADS = {
    "yolov3": (YOLOV3, yolov3_loss, [7, 7]),
    "yolox": (YoloXDecoder(2, (16, 32)), yolox_loss, [7, 7]),
    "dfl": (DflDecoder(2, 7, (16, 32)), gfl_loss, [2, 2, 32, 32]),
    "ssd": (SsdDecoder(2, (((0.2, 0.2), (0.3, 0.3)), ((0.5, 0.5),)), 16), ssd_loss, [6, 3, 8, 4]),
}


@pytest.mark.parametrize("name", HEADS)
def test_maps_that_follow_the_gradient_come_to_show_the_objects(name):
    """The loss alone, without a network: free maps are trained until the decoder reads the objects."""
    torch.manual_seed(0)
    decoder, loss, channels = HEADS[name]
    order = (4, 2) if name != "yolov3" else (2, 4)
    sides = [order[place % 2] for place in range(len(channels))]
    maps = [nn.Parameter(torch.randn(1, k, s, s) * 0.1) for k, s in zip(channels, sides, strict=True)]
    objects = [(1, BOX), (0, [2.0, 20.0, 30.0, 60.0])]
    optimizer = torch.optim.Adam(maps, 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss(maps, rows(*objects), decoder).backward()
        optimizer.step()
    found = detect(decoder, [one.detach().numpy() for one in maps], (64, 64))[0].above(0.4)
    order = np.argsort(found.labels)
    assert found.labels[order].tolist() == [0, 1]
    np.testing.assert_allclose(found.boxes[order], [objects[1][1], BOX], atol=1.0)


@pytest.mark.parametrize("name", HEADS)
def test_images_without_objects_have_a_finite_loss_and_gradient(name):
    decoder, loss, channels = HEADS[name]
    order = (4, 2) if name != "yolov3" else (2, 4)
    maps = [torch.zeros(1, k, order[p % 2], order[p % 2], requires_grad=True) for p, k in enumerate(channels)]
    found = loss(maps, rows(), decoder)
    found.backward()
    assert math.isfinite(float(found.detach()))
    assert all(one.grad is None or torch.isfinite(one.grad).all() for one in maps)


def test_weights_of_blended_images_scale_what_an_object_costs():
    decoder, loss, _ = HEADS["yolox"]
    maps = [torch.zeros(1, 7, 4, 4), torch.zeros(1, 7, 2, 2)]
    half = rows((1, BOX))
    half[..., 5] /= 2
    assert float(loss(maps, half, decoder)) != float(loss(maps, rows((1, BOX)), decoder))


def test_a_loss_of_another_detector_is_refused():
    with pytest.raises(ConfigError, match="decoded by 'yolox'"):
        detection_loss(YoloXDecoder(2), "YOLOv3Loss")
    with pytest.raises(ConfigError, match="did you mean 'YOLOXLoss'"):
        detection_loss(YoloXDecoder(2), "YOLOXLos")
    assert detection_loss(YoloXDecoder(2)).func is yolox_loss


def test_yolov3_lets_other_anchors_of_a_like_shape_learn_an_object_too():
    maps = [torch.zeros(1, 7, 2, 2), torch.zeros(1, 7, 4, 4)]
    alone = yolov3_loss(maps, rows((1, BOX)), YOLOV3)
    both = yolov3_loss(maps, rows((1, BOX)), YOLOV3, iou_thresh=0.05)  # 12 x 14 in 40 x 40: 0.105
    shape = abs(math.log(12 / 40)) + abs(math.log(14 / 40))
    more = (2 - 12 * 14 / 64**2) * (2 * math.log(2) + shape) + 2 * math.log(2)
    assert float(both - alone) == pytest.approx(more, rel=1e-4)
