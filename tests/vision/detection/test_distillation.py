"""What a detector learns from another one's maps."""

import pytest
import torch

from quantrim.detection import BoxesDecoder, DflDecoder, SsdDecoder, YoloV3Decoder, YoloXDecoder
from quantrim.errors import ModelError
from quantrim.vision.detection import box_distillation

ANCHORS = (((10.0, 12.0), (20.0, 16.0)), ((4.0, 4.0), (6.0, 8.0)))
DECODERS = {
    "yolov3": (YoloV3Decoder(3, ANCHORS, (16, 8)), [(16, 2), (16, 4)]),
    "yolox": (YoloXDecoder(3, (8, 16)), [(8, 4), (8, 2)]),
    "dfl": (DflDecoder(3, 3, (8, 16)), [(3, 4), (3, 2), (16, 4), (16, 2)]),
    "ssd": (SsdDecoder(3, (((0.2, 0.2),) * 2, ((0.5, 0.5),) * 2)), [(8, 4), (8, 2), (8, 4), (8, 2)]),
}


def maps(sizes: list[tuple[int, int]], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, side, side, generator=generator) for channels, side in sizes]


@pytest.mark.parametrize("kind", DECODERS)
def test_equal_maps_lose_nothing_and_others_something(kind):
    decoder, sizes = DECODERS[kind]
    teacher, student = maps(sizes, 0), [one.requires_grad_() for one in maps(sizes, 1)]
    assert box_distillation(teacher, teacher, decoder).item() == pytest.approx(0, abs=1e-4)
    loss = box_distillation(student, teacher, decoder)
    assert loss.item() > 0.1
    loss.backward()
    assert all(one.grad.abs().sum() > 0 for one in student)


@pytest.mark.parametrize("kind", DECODERS)
def test_learning_from_a_teacher_leads_to_it(kind):
    decoder, sizes = DECODERS[kind]
    teacher, student = maps(sizes, 0), [one.requires_grad_() for one in maps(sizes, 1)]
    optimizer = torch.optim.Adam(student, lr=0.1)
    first = box_distillation(student, teacher, decoder).item()
    for _ in range(100):
        optimizer.zero_grad()
        loss = box_distillation(student, teacher, decoder)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first


def test_boxes_count_by_the_teachers_score():
    decoder = YoloXDecoder(1, (8,))
    teacher = [torch.zeros(1, 6, 2, 2)]
    teacher[0][:, 4:] = -9.0
    teacher[0][0, 4:, 0, 0] = 9.0  # one sure object
    here, there = ([teacher[0].clone()] for _ in range(2))
    here[0][0, 0, 0, 0] += 3.0
    there[0][0, 0, 1, 1] += 3.0
    assert box_distillation(here, teacher, decoder).item() > 2.0
    assert box_distillation(there, teacher, decoder).item() < 1e-2


def test_files_that_decode_themselves_teach_nothing():
    with pytest.raises(ModelError, match="decode themselves"):
        box_distillation([torch.zeros(1, 4)], [torch.zeros(1, 4)], BoxesDecoder(2))
