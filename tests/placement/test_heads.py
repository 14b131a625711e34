"""Heads of detectors stay float; what only looks like one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantrim.graph import Graph, graph_from_onnx, normalize, random_feed, read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.placement import Selection, place
from quantrim.targets import target_named


class Detector(nn.Module):
    """A body and heads on so many levels: scores, and boxes as distributions where asked."""

    def __init__(self, levels: int, bins: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, 1) for _ in range(levels))
        self.scores = nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(levels))
        self.boxes = nn.ModuleList(nn.Conv2d(8, 4 * bins, 1) for _ in range(levels))
        self.project = nn.Linear(bins, 1, bias=False)
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        found, x = [], torch.relu(self.stem(x))
        for down, scores, boxes in zip(self.down, self.scores, self.boxes, strict=True):
            x = torch.relu(down(x))
            box = boxes(x).flatten(2)
            if self.bins > 1:
                box = self.project(box.unflatten(1, (4, self.bins)).permute(0, 1, 3, 2).softmax(-1)).squeeze(-1)
            found.append(torch.cat([box, scores(x).flatten(2).sigmoid()], 1))
        return torch.cat(found, 2)


def graph_of(module: nn.Module, folder: Path) -> Graph:
    export_onnx(module.eval(), torch.randn(1, 3, 32, 32), folder / "m.onnx", dynamic_batch=False)
    model = normalize(read_onnx(folder / "m.onnx"))
    return graph_from_onnx(model, random_feed(model))


@pytest.mark.parametrize("target", ["portable", "openvino", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("bins", [1, 8])
def test_heads_and_expectations_of_a_detector_stay_float(tmp_path, target, bins):
    graph = graph_of(Detector(2, bins), tmp_path)
    plan = place(graph, target_named(target), Selection(find_heads=True))
    assert sum("head of a detector" in reason for reason in plan.float_nodes.values()) == 4
    assert sum("expectation" in reason for reason in plan.float_nodes.values()) == (2 if bins > 1 else 0)
    assert len(plan.weights) == 3  # the body
    assert not plan.outputs


def test_two_outputs_or_a_classifier_are_no_detector(tmp_path):
    two = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Detector(1).scores[0])
    assert not place(graph_of(two, tmp_path), target_named("portable"), Selection(find_heads=True)).float_nodes
    assert not place(
        graph_of(Detector(1), tmp_path), target_named("portable"), Selection(find_heads=True)
    ).float_nodes
