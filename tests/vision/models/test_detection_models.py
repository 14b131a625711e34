"""Detectors against their published sizes, and the torch decoders against the numpy ones."""

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from quantrim.detection import DflDecoder, Thresholds, detect
from quantrim.errors import ModelError
from quantrim.vision.models import profile
from quantrim.vision.models.detection import (
    Decoded,
    PicoDet,
    StridedMaps,
    TorchvisionSSD,
    YOLOv3,
    candidates,
    picodet_s,
    require_detector,
    ssdlite,
    yolov3_mobilenet_v1,
    yolox_nano,
    yolox_s,
    yolox_tiny,
)

SMALL = {
    "yolov3": lambda: yolov3_mobilenet_v1(3, scale=0.125),
    "yolox": lambda: yolox_nano(3),
    "ssd": lambda: ssdlite(3, width=0.5),
}
PICO = {"pico": lambda: PicoDet(3, 0.35, 32, 1)}


@pytest.mark.parametrize(("side", "published"), [(608, 20.20), (416, 9.46), (320, 5.60)])
def test_yolov3_mobilenet_v1_costs_what_paddledetection_publishes(side, published):
    """PaddleDetection's "GFLOPs" are multiply-accumulates in units of 2^30."""
    cost = profile(yolov3_mobilenet_v1(20), (1, 3, side, side))
    assert cost.macs / 2**30 == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize(
    ("build", "side", "params", "gflops"),
    [(yolox_nano, 416, 0.91, 1.08), (yolox_tiny, 416, 5.06, 6.45), (yolox_s, 640, 9.0, 26.8)],
)
def test_yolox_has_its_published_size(build, side, params, gflops):
    """The authors count batch norm and activations, too: up to 4 % of the nano model's FLOPs."""
    cost = profile(build(), (1, 3, side, side))
    assert cost.params / 1e6 == pytest.approx(params, abs=0.04)
    assert cost.macs * 2 / 1e9 == pytest.approx(gflops, rel=0.04)


@pytest.mark.parametrize(("side", "gflops"), [(320, 0.97), (416, 1.65)])
def test_picodet_s_has_its_published_size(side, gflops):
    """configs/picodet of PaddleDetection; batch norm and activations are counted there."""
    cost = profile(picodet_s(), (1, 3, side, side))
    assert cost.params / 1e6 == pytest.approx(1.18, abs=0.01)
    assert cost.macs * 2 / 1e9 == pytest.approx(gflops, rel=0.02)


def test_picodets_scores_are_means_of_class_and_alignment():
    torch.manual_seed(0)
    model = PicoDet(3, 0.35, 32, 1).eval()
    head, x = model.heads[0], torch.randn(1, 32, 4, 4) * 3
    y = head.convs(x)
    excited = head.excited(y * head.gate(y.mean((2, 3), keepdim=True)).sigmoid())
    expected = (head.cls_pred(excited).sigmoid() * head.align(y).sigmoid()).sqrt()
    torch.testing.assert_close(head(x)[0].sigmoid(), expected, rtol=1e-4, atol=1e-6)
    sure = torch.full((1, 3, 1, 1), 40.0)
    head.cls_pred, head.align = (
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), Said(sure)) for _ in range(2)
    )
    assert torch.isfinite(head(x)[0]).all()


class Said(torch.nn.Module):
    """Says the same of everything."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf"])
def test_any_classifier_of_torchvision_is_a_body(name):
    body = StridedMaps(getattr(torchvision.models, name)(weights=None)).eval()
    maps = body(torch.zeros(1, 3, 96, 160))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (channels, 96 // stride, 160 // stride)
        for channels, stride in zip(body.feat_channels, (8, 16, 32), strict=True)
    ]
    detector = YOLOv3(getattr(torchvision.models, name)(weights=None), 3, neck_scale=0.125).eval()
    assert [one.shape[1] for one in detector(torch.zeros(1, 3, 96, 160))] == [24, 24, 24]
    assert not any(isinstance(module, torch.nn.Linear) for module in body.modules())


def test_a_body_without_the_strides_is_told():
    with pytest.raises(ModelError, match="no map at stride 8"):
        StridedMaps(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4, 1)))


def test_ssdlite_has_torchvisions_size_and_weights_fit():
    own = ssdlite(90)
    published = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights_backbone=None, num_classes=91
    )
    assert profile(own, (1, 3, 320, 320)).params == 3_440_060
    wrapped = TorchvisionSSD(published, 90)
    assert {n: p.shape for n, p in own.named_parameters()} == {
        n: p.shape for n, p in wrapped.named_parameters()
    }
    assert own.decoder == wrapped.decoder


@pytest.mark.parametrize("name", SMALL)
def test_head_outputs_name_the_convolutions_that_make_the_maps(name):
    model = SMALL[name]()
    made = {module: None for module in map(model.get_submodule, model.head_outputs)}
    assert all(isinstance(module, torch.nn.Conv2d) for module in made)
    for module in made:
        module.register_forward_hook(lambda module, inputs, output: made.__setitem__(module, output))
    maps = model.eval()(torch.zeros(1, 3, 96, 128))
    channels = sum(output.shape[1] * output.shape[2] * output.shape[3] for output in made.values())
    assert channels == sum(one[0].numel() for one in maps)


@pytest.mark.parametrize("name", [*SMALL, *PICO])
def test_torch_decodes_as_numpy_does(name):
    torch.manual_seed(0)
    model = (SMALL | PICO)[name]().eval()
    with torch.no_grad():
        maps = [one + torch.randn_like(one) for one in model(torch.randn(2, 3, 96, 128))]
    boxes, scores = candidates(model.decoder, maps, (96, 128))
    expected = model.decoder.candidates([one.numpy() for one in maps], (96, 128))
    np.testing.assert_allclose(boxes.numpy(), expected[0], rtol=2e-4, atol=2e-3)
    np.testing.assert_allclose(scores.numpy(), expected[1], rtol=1e-4, atol=1e-6)


def test_torch_decodes_distributions_as_numpy_does():
    generator = torch.Generator().manual_seed(0)
    decoder = DflDecoder(3, 7, (8, 16))
    maps = [torch.randn(2, k, s, s + 1, generator=generator) for k in (3, 32) for s in (8, 4)]
    with pytest.raises(ModelError, match="points"):
        decoder.candidates([one.numpy() for one in maps], (64, 64))
    maps = [torch.randn(2, k, *s, generator=generator) for k in (3, 32) for s in ((8, 12), (4, 6))]
    boxes, scores = candidates(decoder, maps, (64, 96))
    expected = decoder.candidates([one.numpy() for one in maps], (64, 96))
    np.testing.assert_allclose(boxes.numpy(), expected[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scores.numpy(), expected[1], rtol=1e-5)


def test_default_boxes_are_torchvisions():
    model = ssdlite(3)
    boxes = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    maps = model.eval()(torch.zeros(1, 3, 128, 192))[:6]
    images = ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)])
    expected = boxes(images, list(maps))[0].numpy()
    priors = model.decoder.priors([tuple(one.shape[2:]) for one in maps], (128, 192))
    corners = np.concatenate([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], axis=1)
    np.testing.assert_allclose(corners, expected, rtol=1e-4, atol=1e-3)


def test_a_torchvision_ssd_gives_the_same_boxes_through_its_own_code():
    torch.manual_seed(0)
    theirs = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights_backbone=None, num_classes=4, score_thresh=0.3, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    ).eval()
    image = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        expected = theirs([image[0]])[0]
        maps = TorchvisionSSD(theirs, 3).eval()(image)
    decoder = TorchvisionSSD(theirs).decoder
    found = detect(decoder, [m.numpy() for m in maps], (320, 320), Thresholds(0.3, 0.55, 300, 300))[0]
    count = min(len(found), len(expected["scores"]))
    assert abs(len(found) - len(expected["scores"])) <= 2
    np.testing.assert_allclose(found.scores[:count], expected["scores"][:count].numpy(), atol=2e-3)


def test_decoded_boxes_lie_on_the_canvas():
    model = Decoded(yolox_nano(3).eval())
    with torch.no_grad():
        boxes, scores = model(torch.randn(1, 3, 64, 96) * 5)
    assert boxes.shape == (1, 126, 4)
    assert scores.shape == (1, 126, 3)
    assert float(boxes.min()) >= 0
    assert float(boxes[..., 0::2].max()) <= 96
    assert float(boxes[..., 1::2].max()) <= 64


def test_what_is_no_detector_is_told():
    with pytest.raises(ModelError, match="no detector"):
        require_detector(torch.nn.ReLU())
    with pytest.raises(ModelError, match="no torchvision SSD"):
        TorchvisionSSD(torch.nn.ReLU())
    with pytest.raises(ModelError, match="num_classes=6"):
        TorchvisionSSD(torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None), 5)
