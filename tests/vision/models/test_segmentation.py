"""What every segmentation model promises: its logits, its modes, its gradients, its ONNX file."""

import copy

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from quantrim.graph.from_torch import export_onnx
from quantrim.vision.models import model_from_spec

RESNET = {"type": "ResNet50_vd", "output_stride": 8}
MODELS = {
    "BiSeNetV2": {"type": "BiSeNetV2", "lambd": 0.25, "align_corners": False, "pretrained": None},
    "FastSCNN": {"type": "FastSCNN"},
    "UNet": {"type": "UNet"},
    "UNet-deconv": {"type": "UNet", "use_deconv": True},
    "HarDNet": {"type": "HarDNet"},
    "FCN-HRNet_W18": {"type": "FCN", "backbone": {"type": "HRNet_W18"}, "backbone_indices": [-1]},
    "DeepLabV3": {
        "type": "DeepLabV3",
        "backbone": RESNET | {"multi_grid": [1, 2, 4]},
        "backbone_indices": [3],
        "aspp_ratios": [1, 12, 24, 36],
        "aspp_out_channels": 256,
    },
    "DeepLabV3P": {"type": "DeepLabV3P", "backbone": RESNET, "aspp_ratios": [1, 12, 24, 36]},
    "GCNet": {"type": "GCNet", "backbone": RESNET, "backbone_indices": [2, 3], "gc_channels": 512},
    "PSPNet": {"type": "PSPNet", "backbone": RESNET, "enable_auxiliary_loss": True},
}
HEADS_IN_TRAINING = {"BiSeNetV2": 5, "FastSCNN": 2, "GCNet": 2, "PSPNet": 2}
#: Those whose export takes a few seconds; the others are exported by the slow tests.
QUICK_TO_EXPORT = ["BiSeNetV2", "FastSCNN", "UNet", "UNet-deconv"]
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return model_from_spec(MODELS[name] | {"num_classes": 3} | arguments)


@every_model
def test_one_step_gives_a_finite_loss_and_reaches_every_parameter(name):
    model = build(name).train()
    outputs = model(torch.randn(2, 3, 64, 64))
    loss = sum(F.cross_entropy(logits, torch.randint(0, 3, (2, 64, 64))) for logits in outputs)
    loss.backward()
    assert len(outputs) == HEADS_IN_TRAINING.get(name, 1)
    assert torch.isfinite(loss)
    unreached = [key for key, value in model.named_parameters() if value.grad is None]
    assert not unreached
    assert all(torch.isfinite(value.grad).all() for value in model.parameters())


@every_model
@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_have_the_size_of_any_image_divisible_by_32(name, align_corners):
    with torch.device("meta"):
        model = build(name, align_corners=align_corners)

        @settings(max_examples=3, deadline=None)
        @given(st.integers(1, 40), st.integers(1, 64), st.integers(2, 4), st.booleans())
        def check(rows, columns, batch, training):
            outputs = model.train(training)(torch.empty(batch, 3, 32 * rows, 32 * columns))
            assert len(outputs) == (HEADS_IN_TRAINING.get(name, 1) if training else 1)
            assert all(logits.shape == (batch, 3, 32 * rows, 32 * columns) for logits in outputs)

        check()


@pytest.mark.parametrize("name", ["BiSeNetV2", "UNet", "HarDNet", "FCN-HRNet_W18", "PSPNet"])
def test_odd_sizes_run_too(name):
    with torch.device("meta"):
        (logits,) = build(name).eval()(torch.empty(1, 3, 97, 131))
    assert logits.shape == (1, 3, 97, 131)


def check_onnx_file(name: str, path: object, size: tuple[int, int]) -> None:
    """The file is within 1e-4 of double precision, or about as near to it as torch's own float32."""
    model = settled(build(name), size)
    exact = copy.deepcopy(model).double()
    export_onnx(model, torch.randn(1, 3, *size), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        image = torch.randn(batch, 3, *size)
        with torch.no_grad():
            want = exact(image.double())[0]
            rounding = float((model(image)[0] - want).abs().max())
        (got,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=max(1e-4, 3 * rounding))
        assert rounding < 1e-3 * float(want.abs().max())


def settled(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Eval mode with batch statistics of noise; without them residual sums grow block by block."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, *size))
    return model.eval()


@pytest.mark.parametrize("name", QUICK_TO_EXPORT)
def test_onnx_file_computes_what_torch_does_at_any_batch(name, tmp_path):
    check_onnx_file(name, tmp_path / "model.onnx", (64, 96))


@pytest.mark.slow
@every_model
def test_onnx_file_computes_what_torch_does_at_larger_uneven_sizes(name, tmp_path):
    check_onnx_file(name, tmp_path / "model.onnx", (160, 224))


@pytest.mark.parametrize("name", ["BiSeNetV2", "GCNet"])
def test_auxiliary_heads_do_not_change_the_main_one(name):
    model = settled(build(name), (64, 64))
    image = torch.randn(2, 3, 64, 64)
    for layer in model.modules():  # all but the root in eval mode: auxiliary heads run, statistics stay
        layer.training = layer is model
    with torch.no_grad():
        assert torch.equal(model(image)[0], model.eval()(image)[0])
