"""PaddleDetection's pruned YOLOv3-MobileNetV1 in GFLOPs: its ratios, cut out of the real channel groups."""

import numpy as np
import pytest
import torch

from quantrim.pruning import channel_groups
from quantrim.pruning.groups.groups import joined
from quantrim.pruning.surgery import remove
from quantrim.vision.models import profile
from quantrim.vision.models.detection import yolov3_mobilenet_v1

#: Share of the channels that each of the 18 head convolutions loses (PaddleDetection 0.5, slim/prune).
TABLES = {
    "sensity": (
        [0.1, 0.2, 0.2, 0.2, 0.2, 0.1, 0.2, 0.3, 0.3, 0.3, 0.2, 0.1, 0.3, 0.4, 0.4, 0.4, 0.4, 0.3],
        0.3455,
    ),
    "r578": ([0.5] * 6 + [0.7] * 6 + [0.8] * 6, 0.6957),
}
LAYERS = [
    f"levels.{level}.{name}.0" for level in range(3) for name in (*(f"route.{i}" for i in range(5)), "tip")
]


@pytest.mark.parametrize("name", TABLES)
def test_the_published_share_of_flops_goes(name):
    ratios, published = TABLES[name]
    torch.manual_seed(0)
    model = yolov3_mobilenet_v1(20).eval()
    before = profile(model, (1, 3, 608, 608)).macs
    graph = channel_groups(model, torch.zeros(1, 3, 64, 64), check=False)
    groups = {group.name: group for group in graph.groups}
    wanted = dict(zip(LAYERS, ratios, strict=True))
    remove(
        model,
        joined(groups[layer].removal(np.arange(round(r * groups[layer].units))) for layer, r in wanted.items()),
    )
    after = profile(model, (1, 3, 608, 608)).macs
    assert 1 - after / before == pytest.approx(published, abs=0.0005)
    assert [tuple(one.shape[1:]) for one in model(torch.zeros(1, 3, 64, 64))] == [
        (75, 2, 2),
        (75, 4, 4),
        (75, 8, 8),
    ]
