"""Parameters and multiply-accumulates against published numbers."""

import pytest
import torch
import torchvision
from torch import nn

from quantrim.vision import models
from quantrim.vision.models import ModelCost, model_from_spec, profile

RESNET = {"type": "ResNet50_vd", "output_stride": 8}
ATROUS = {"backbone": RESNET, "aspp_ratios": [1, 12, 24, 36]}
#: What paddleseg 2.8.0 builds for 19 classes: millions of parameters without auxiliary heads (it gives the
#: convolutions before a batch norm a bias, up to 0.4 %), and paddle.flops at 512x1024 in 10^9, which counts
#: multiply-accumulates and some normalisation; the auxiliary head's 19.4 of GCNet's 415.2 and PSPNet's 531.3
#: are left out. FastDeploy's model table agrees: UNet 52 MB, FCN-HRNet-W18 37 MB, DeepLabV3 150 MB of float32.
PADDLESEG = {
    "BiSeNetV2": ({"type": "BiSeNetV2"}, 2.315, 16.14),
    "UNet": ({"type": "UNet"}, 13.406, 253.75),
    "FCN-HRNet_W18": ({"type": "FCN", "backbone": {"type": "HRNet_W18"}}, 9.641, 37.17),
    "DeepLabV3": ({"type": "DeepLabV3"} | ATROUS, 39.069, 325.42),
    "DeepLabV3P": ({"type": "DeepLabV3P"} | ATROUS, 26.723, 228.44),
    "GCNet": ({"type": "GCNet", "backbone": RESNET}, 47.267, 395.79),
    "PSPNet": ({"type": "PSPNet", "backbone": RESNET}, 65.499, 511.94),
}


@pytest.mark.parametrize("name", PADDLESEG)
def test_segmentation_models_cost_what_paddleseg_s_do(name):
    spec, params_millions, gmacs = PADDLESEG[name]
    cost = profile(build(spec), (1, 3, 512, 1024))
    assert cost.params / 1e6 == pytest.approx(params_millions, rel=0.005)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_unet_with_transposed_convolutions_has_paddleseg_s_parameters():
    cost = profile(build({"type": "UNet", "use_deconv": True}), (1, 3, 64, 64))
    assert cost.params / 1e6 == pytest.approx(12.579, rel=0.005)


def test_auxiliary_heads_are_counted_apart():
    # paddleseg 2.8.0: 0.201 M in BiSeNetV2's four, 2.365 M in GCNet's one
    assert profile(build({"type": "BiSeNetV2"}), (1, 3, 64, 64)).training_params == pytest.approx(
        201_196, rel=0.005
    )
    gcnet = build({"type": "GCNet", "backbone": RESNET})
    assert profile(gcnet, (1, 3, 64, 64)).training_params == pytest.approx(2_364_947, rel=0.005)


def test_hardnet_costs_what_its_authors_publish():
    # github.com/PingoLH/FCHarDNet: 4.1 M, 35.4 GMac at 1024x2048. PaddleSeg's first convolution has stride 1,
    # so that its HarDNet has the same parameters and four times the arithmetic.
    cost = profile(build({"type": "HarDNet"}), (1, 3, 1024, 2048))
    assert cost.params / 1e6 == pytest.approx(4.1, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(35.4, rel=0.01)


def test_fast_scnn_has_the_parameters_of_its_paper():
    # arXiv 1902.04502, table 4: 1.11 M. PaddleSeg's has 1.40 M, by a 3x3 fusion after pyramid pooling.
    cost = profile(build({"type": "FastSCNN"}), (1, 3, 64, 64))
    assert cost.params / 1e6 == pytest.approx(1.11, rel=0.03)


@pytest.mark.parametrize(
    ("scale", "params_millions", "mmacs"), [(1.0, 4.2, 569), (0.75, 2.6, 325), (0.5, 1.3, 149)]
)
def test_mobilenet_v1_costs_what_its_paper_says(scale, params_millions, mmacs):
    # arXiv 1704.04861, table 6
    with torch.device("meta"):
        cost = profile(models.MobileNetV1(scale=scale), (1, 3, 224, 224))
    assert cost.params / 1e6 == pytest.approx(params_millions, rel=0.03)
    assert cost.macs / 1e6 == pytest.approx(mmacs, rel=0.01)


@pytest.mark.parametrize(
    ("build_model", "arguments", "reference"),
    [
        (models.mobilenet_v2, {}, "mobilenet_v2"),
        (models.mobilenet_v3_small, {}, "mobilenet_v3_small"),
        (models.mobilenet_v3_large, {}, "mobilenet_v3_large"),
        (models.resnet18, {}, "resnet18"),
        (models.resnet50, {}, "resnet50"),
        (models.resnet101, {}, "resnet101"),
        (models.vgg16, {}, "vgg16"),
        (models.vgg16, {"batch_norm": True}, "vgg16_bn"),
        (models.vgg19, {}, "vgg19"),
        (models.vgg19, {"batch_norm": True}, "vgg19_bn"),
    ],
)
def test_torchvision_classifiers_cost_what_torchvision_documents(build_model, arguments, reference):
    published = torchvision.models.get_model_weights(reference).DEFAULT.meta
    with torch.device("meta"):
        cost = profile(build_model(**arguments), (1, 3, 224, 224))
    assert cost.params == published["num_params"]
    assert cost.macs / 1e9 == pytest.approx(published["_ops"], rel=0.03, abs=0.005)


def test_profile_counts_a_convolution_as_a_hand_does_and_leaves_the_module_alone():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10)).train()
    module[0].eval()
    cost = profile(module, (2, 3, 8, 8))
    assert cost == ModelCost(3 * 8 * 9 + 8 + 128 * 10 + 10, 0, 2 * (3 * 8 * 9 * 16 + 128 * 10))
    assert module.training
    assert not module[0].training
    assert all(p.device.type == "cpu" and p.grad is None for p in module.parameters())


def test_a_weight_used_twice_counts_once():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    assert profile(module, (1, 4)) == ModelCost(16, 0, 32)


def build(spec: dict[str, object]) -> nn.Module:
    with torch.device("meta"):
        return model_from_spec(spec | {"num_classes": 19})
