"""Classifiers: their logits, small inputs, pretrained files and ONNX."""

import urllib.error

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F
from torchvision.models import MobileNet_V2_Weights

from quantrim.errors import CheckpointError, ModelError
from quantrim.graph.from_torch import export_onnx
from quantrim.vision import models


@pytest.mark.parametrize(
    ("in_channels", "size", "small_input", "last"),
    [(3, 224, False, 7), (3, 32, True, 2), (1, 28, True, 2), (1, 28, False, 1)],
)
def test_mobilenet_v1_takes_photos_and_thumbnails(in_channels, size, small_input, last):
    with torch.device("meta"):
        model = models.MobileNetV1(10, in_channels=in_channels, small_input=small_input)
        images = torch.empty(2, in_channels, size, size)
    assert model.features(images).shape[-2:] == (last, last)
    assert model(images).shape == (2, 10)


def test_mobilenet_v1_learns_to_tell_two_patterns_apart():
    torch.manual_seed(0)
    model = models.MobileNetV1(2, scale=0.25, in_channels=1, small_input=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 1, 28, 28) * 0.3
    images[labels == 1, :, :, ::2] += 1.0
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    "build",
    [lambda: models.MobileNetV1(10, small_input=True), lambda: models.mobilenet_v3_small(num_classes=10)],
    ids=["MobileNetV1", "MobileNetV3-Small"],
)
def test_onnx_file_of_a_classifier_computes_what_torch_does_at_any_batch(build, tmp_path):
    torch.manual_seed(0)
    model = build().eval()
    export_onnx(model, torch.randn(1, 3, 32, 32), tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 32, 32)
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(got, model(images).detach().numpy(), atol=1e-4)


def test_pretrained_file_gives_its_weights_and_spares_a_head_of_other_classes(tmp_path):
    source = models.mobilenet_v3_small(num_classes=7)
    torch.save(source.state_dict(), tmp_path / "seven.pth")
    with pytest.warns(UserWarning, match=r"classifier\.3\.weight: file \(7, 1024\), model \(5, 1024\)"):
        model = models.mobilenet_v3_small(num_classes=5, pretrained=tmp_path / "seven.pth")
    assert torch.equal(model.features[0][0].weight, source.features[0][0].weight)
    assert model.classifier[3].out_features == 5


def test_pretrained_file_of_another_architecture_is_refused(tmp_path):
    torch.save(models.MobileNetV1(3, scale=0.25).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: weights of another model than MobileNetV3"):
        models.mobilenet_v3_small(pretrained=tmp_path / "other.pth")


def test_imagenet_without_network_says_what_to_fetch(monkeypatch):
    def offline(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", offline)
    with pytest.raises(
        ModelError, match=r"no route to host.*Fetch https://download.pytorch.org/models/mobilenet_v2"
    ):
        models.mobilenet_v2(pretrained="imagenet")


def test_imagenet_weights_are_loaded_and_a_head_of_other_classes_is_fresh(monkeypatch):
    source = models.mobilenet_v2()
    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", lambda *a, **b: source.state_dict())
    with pytest.warns(UserWarning, match="mismatched"):
        model = models.mobilenet_v2(num_classes=4, pretrained="imagenet")
    assert torch.equal(model.features[0][0].weight, source.features[0][0].weight)
    assert model.classifier[1].out_features == 4
