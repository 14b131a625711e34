"""Names of configs, import paths, and other libraries' segmentation models."""

import pytest
import torch
from torch import nn

from quantrim.errors import ConfigError, ModelError
from quantrim.vision.models import MODELS, PSPNet, Segmenter, model_from_spec, resolve_model


def test_a_paddleseg_section_builds_the_model_with_its_backbone():
    with torch.device("meta"):
        model = model_from_spec(
            {
                "type": "PSPNet",
                "num_classes": 19,
                "backbone": {"type": "ResNet50_vd", "output_stride": 8, "pretrained": None},
                "backbone_indices": [2, 3],
                "bin_sizes": [1, 2, 3, 6],
                "pretrained": None,
            }
        )
    assert isinstance(model, PSPNet)
    assert model.head[2].out_channels == 19


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_name_builds_a_module(name):
    arguments = {}
    if name in ("DeepLabV3", "DeepLabV3P", "GCNet", "PSPNet"):
        arguments = {"backbone": {"type": "ResNet50_vd"}}
    elif name == "FCN":
        arguments = {"backbone": {"type": "HRNet_W18"}}
    elif name == "YOLOv3":
        arguments = {"backbone": {"type": "torchvision.models.resnet18"}}
    elif name == "TorchvisionSSD":
        body = "torchvision.models.detection.ssdlite320_mobilenet_v3_large"
        arguments = {"detector": {"type": body, "weights_backbone": None, "num_classes": 3}}
    if "_vd" not in name and "HRNet" not in name:
        arguments["num_classes"] = 2
    with torch.device("meta"):
        assert isinstance(model_from_spec({"type": name} | arguments), nn.Module)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "BiSeNetv2", "num_classes": 2}, "'BiSeNetv2' is unknown; did you mean 'BiSeNetV2'"),
        ({"num_classes": 2}, "a model needs a type"),
        ({"type": "BiSeNetV2", "num_clases": 2}, "no argument 'num_clases'; did you mean 'num_classes'"),
        ({"type": "BiSeNetV2"}, "BiSeNetV2 needs num_classes"),
        ({"type": "torchvision.models.resnet51"}, "no 'resnet51' to call; did you mean 'resnet50'"),
        ({"type": "torchvision.models.no.such.x"}, "torchvision.models.no.such can't be imported"),
        ({"type": "MobileNetV1", "num_classes": 2, "scale": {}}, "MobileNetV1 can't be built with these"),
        ({"type": "FCN", "num_classes": 2, "backbone": {"type": "MobileNetV1"}}, "has no feat_channels"),
        (
            {"type": "FCN", "num_classes": 2, "backbone": {"type": "HRNet_W18"}, "backbone_indices": [3]},
            "has maps 0 to 0, not 3",
        ),
        (
            {"type": "PSPNet", "num_classes": 2, "backbone": {"type": "ResNet50_vd"}, "backbone_indices": [3]},
            "takes 2 of the backbone's maps",
        ),
    ],
)
def test_a_wrong_section_says_what_is_wrong(spec, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        model_from_spec(spec)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.getoutput",
        "torch.nn.Linear",
        "torch.load",
        "tests.vision.models.test_resolve.Heads",
        "quantrim.vision.models.weights.load_pretrained",
        "quantrim.vision.models.resolve.model_from_spec",
        "torchvision.models._api.load_state_dict_from_url",
        "torchvision.models._utils.OrderedDict",
        "torchvision.models.get_model",
        "torchvision.models.resnet.partial",
        "torchvision.modelsx.y",
        "timm.models.load_checkpoint",
        "timm.models._factory.load_model_config_from_path",
        "timm.utils.model_ema.deepcopy",
        "segmentation_models_pytorch.from_pretrained",
    ],
)
def test_nothing_but_listed_builders_of_models_is_called_for_a_configuration(path):
    with pytest.raises(ConfigError, match=r"not allowed|no model of|neither a|can't be imported"):
        resolve_model(path)


@pytest.mark.parametrize(
    "path",
    [
        "torchvision.models.resnet18",
        "torchvision.models.ResNet",
        "torchvision.models.segmentation.fcn_resnet50",
        "timm.create_model",
        "timm.models.resnet18",
        "quantrim.vision.models.Segmenter",
        "quantrim.vision.models.resnet_vd.resnet50_vd",
    ],
)
def test_builders_of_the_known_libraries_are_found(path):
    assert callable(resolve_model(path))


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_name": "resnet18", "checkpoint_path": "x.pth"},
        {"model_name": "hf-hub:someone/something"},
        {"model_name": "local-dir:/tmp/x"},
        {"model_name": "resnet18", "pretrained_cfg": {"file": "x.pth"}},
    ],
)
def test_a_configuration_does_not_make_timm_read_files_of_its_choice(arguments):
    with pytest.raises(ConfigError, match="names a file or an address"):
        model_from_spec({"type": "timm.create_model", **arguments})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "posixpath.join", "a": "x"}, "makes str, not a torch.nn.Module"),
        ({"type": "os.getcwd"}, "neither a torch.nn.Module class nor a Python function"),
        ({"type": "torch.nn.Module"}, "computes nothing"),
        ({"type": "no_such_package.models.x"}, "no_such_package.models can't be imported"),
    ],
)
def test_trusted_paths_still_lead_to_a_module_or_to_one_line(spec, message):
    with pytest.raises(ConfigError, match=message):
        model_from_spec(spec, trust_code=True)
    linear = {"type": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    assert isinstance(model_from_spec(linear, trust_code=True), nn.Linear)


def test_an_import_path_reaches_torchvision():
    model = resolve_model("torchvision.models.segmentation.lraspp_mobilenet_v3_large")(
        weights=None, weights_backbone=None, num_classes=4
    )
    (logits,) = Segmenter(model).eval()(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 4, 64, 64)


class Heads(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        main, aux = x[:, :2, ::4, ::4], x[:, :2, ::8, ::8]
        return {"tensor": main, "mapping": {"aux": aux, "out": main}, "tuple": (main, aux), "none": None}[
            self.form
        ]


@pytest.mark.parametrize(("form", "heads"), [("tensor", 1), ("mapping", 2), ("tuple", 2)])
def test_a_segmenter_gives_logits_of_the_image_s_size_whatever_the_module_returns(form, heads):
    x = torch.randn(2, 3, 32, 64)
    model = Segmenter(Heads(form))
    assert [tuple(logits.shape) for logits in model.train()(x)] == [(2, 2, 32, 64)] * heads
    (main,) = model.eval()(x)
    torch.testing.assert_close(main[:, :, ::4, ::4].shape, x[:, :2, ::4, ::4].shape)


def test_a_segmenter_refuses_a_classifier():
    with pytest.raises(ModelError, match="Linear returns Tensor, not logits of shape"):
        Segmenter(nn.Linear(3, 2))(torch.zeros(1, 3))
    with pytest.raises(ModelError, match="Heads returns NoneType"):
        Segmenter(Heads("none"))(torch.zeros(1, 3, 8, 8))
