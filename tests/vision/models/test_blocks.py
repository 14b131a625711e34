"""Parts of the models against slow or independent references."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from quantrim.errors import ConfigError
from quantrim.vision.models.blocks import resize
from quantrim.vision.models.gcnet import GlobalContext
from quantrim.vision.models.hardnet import HarDBlock
from quantrim.vision.models.hrnet import hrnet_w18
from quantrim.vision.models.pyramid import pool_to_bins
from quantrim.vision.models.resnet_vd import resnet50_vd


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_pooling_equals_adaptive_pooling_where_the_grid_divides_the_map(bins, rows, columns):
    x = torch.rand(2, 3, bins * rows, bins * columns)
    torch.testing.assert_close(pool_to_bins(x, bins), F.adaptive_avg_pool2d(x, bins))


@given(st.sampled_from([1, 2, 3, 6]), st.integers(1, 20), st.integers(1, 20))
def test_pooling_gives_the_grid_and_keeps_a_constant_at_any_size(bins, rows, columns):
    pooled = pool_to_bins(torch.full((1, 2, rows, columns), 3.0), bins)
    assert pooled.shape == (1, 2, min(bins, rows), min(bins, columns))
    torch.testing.assert_close(pooled, torch.full_like(pooled, 3.0))


@given(st.integers(1, 20), st.integers(1, 8), st.booleans())
def test_every_position_of_the_map_counts_in_the_pooling(size, bins, along_rows):
    shape = (1, 1, size, 7) if along_rows else (1, 1, 7, size)
    x = torch.rand(shape, requires_grad=True)
    pool_to_bins(x, bins).sum().backward()
    assert (x.grad > 0).all()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 24), st.integers(1, 24), st.booleans())
def test_resize_equals_interpolation_to_the_size(height, width, new_height, new_width, align_corners):
    x = torch.rand(1, 2, height, width)
    want = F.interpolate(x, size=(new_height, new_width), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(resize(x, (new_height, new_width), align_corners), want)


def test_global_context_adds_the_attention_weighted_mean_of_all_positions():
    torch.manual_seed(0)
    block = GlobalContext(8, 4).eval()
    x = torch.randn(2, 8, 3, 5)
    for image, got in zip(x, block(x), strict=True):
        positions = image.reshape(8, 15).T
        scores = positions @ block.mask.weight.reshape(8) + block.mask.bias
        weights = scores.exp() / scores.exp().sum()
        context = sum(weight * position for weight, position in zip(weights, positions, strict=True))
        want = image + block.transform(context.reshape(1, 8, 1, 1))[0]
        torch.testing.assert_close(got, want)


def test_harmonic_block_links_a_layer_to_those_a_power_of_two_before_it():
    block = HarDBlock(48, growth_rate=10, grmul=1.7, n_layers=8)
    assert block.links == [[0], [0, 1], [2], [0, 2, 3], [4], [4, 5], [6], [0, 4, 6, 7]]
    assert block.kept == [1, 3, 5, 7, 8]
    assert [layer[0].out_channels for layer in block.layers] == [10, 18, 10, 28, 10, 18, 10, 50]


def test_resnet50_vd_computes_the_maps_of_timm_resnet50d():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model("resnet50d", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    ours = resnet50_vd(output_stride=32).eval()
    values = reference.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    image = torch.randn(1, 3, 65, 97)  # odd, so that the pooled shortcut must round up
    with torch.no_grad():
        for got, want in zip(ours(image), reference(image), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("output_stride", "sizes"),
    [(8, [16, 8, 8, 8]), (16, [16, 8, 4, 4]), (32, [16, 8, 4, 2]), (None, [16, 8, 4, 2])],
)
def test_resnet_vd_keeps_the_resolution_that_the_output_stride_asks_for(output_stride, sizes):
    with torch.device("meta"):
        maps = resnet50_vd(output_stride=output_stride)(torch.empty(2, 3, 64, 64))
    assert [one.shape[-1] for one in maps] == sizes
    assert [one.shape[1] for one in maps] == [256, 512, 1024, 2048]


def test_resnet_vd_refuses_an_output_stride_it_can_not_have():
    with pytest.raises(ConfigError, match="output_stride is 4; legal: None, 32, 16, 8"):
        resnet50_vd(output_stride=4)


def test_hrnet_has_the_parameters_of_timm_hrnet_before_its_classifier():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        reference, ours = timm.create_model("hrnet_w18"), hrnet_w18()
    trunk = ("conv1", "bn1", "conv2", "bn2", "layer1", "transition", "stage")
    want = sum(p.numel() for name, p in reference.named_parameters() if name.startswith(trunk))
    assert sum(p.numel() for p in ours.parameters()) == want
