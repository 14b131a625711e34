"""Nodes bear the paths of the modules that they came from, whoever exported them."""

import onnx_ir as ir
import pytest
import torch
from torch import nn

from quantrim.graph import graph_from_onnx, normalize, random_feed, read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.graph.names import module_of
from quantrim.placement.place import matches


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.ModuleDict({"out": nn.Conv2d(8, 4, 1)})

    def forward(self, x):
        return self.head["out"](self.stem(x)).mean((2, 3))


def test_folded_layers_keep_their_own_paths(tmp_path):
    export_onnx(Net().eval(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")
    model = normalize(read_onnx(tmp_path / "m.onnx"))
    nodes = graph_from_onnx(model, random_feed(model)).nodes
    assert [node.module for node in nodes if node.op == "conv"] == ["stem.0", "head.out"]
    stem = next(node for node in nodes if node.op == "conv")
    assert all(matches(stem, glob) for glob in ("stem", "stem.*", "stem.0", "*0", stem.name))
    assert not any(matches(stem, glob) for glob in ("stem.1", "head", "tem.0"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/backbone/layer1/layer1.0/Relu", "backbone.layer1.0"),
        ("/head/Softmax", "head"),
        ("/Add_3", ""),
        ("Conv_17", ""),
    ],
)
def test_names_of_the_older_exporter_are_paths(name, path):
    assert module_of(ir.node("Relu", [], name=name)) == path


def test_metadata_of_others_are_no_error():
    node = ir.node("Relu", [], name="r")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "what is this ["
    assert module_of(node) == ""
