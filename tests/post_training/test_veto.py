"""A branch that another one dwarfs keeps a scale of its own; branches that are alike share one."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import quantrim as qt
from quantrim.engines import open_session
from quantrim.graph.from_torch import export_onnx


class Branches(nn.Module):
    """Dense blocks: each layer reads a branch and joins its result to it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)
        self.wide.weight.data *= factor
        self.wide.bias.data *= factor
        self.head.weight.data[:, 8:] /= factor

    def forward(self, x):
        x = torch.relu(self.stem(x))
        pooled = torch.max_pool2d(x, 2)
        return self.head(torch.cat([pooled, torch.relu(self.wide(pooled))], 1))


def decibels(expected: np.ndarray, got: np.ndarray) -> float:
    return float(20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(expected - got)))


@pytest.mark.parametrize("target", ["portable", "openvino"])
@pytest.mark.parametrize(("factor", "joined"), [(1.0, True), (300.0, False), (1e5, False)])
def test_a_concat_has_one_scale_only_where_ranges_allow(tmp_path, target, factor, joined):
    torch.manual_seed(0)
    net, x = Branches(factor).eval(), torch.randn(16, 3, 16, 16)
    export_onnx(net, x[:2], tmp_path / "m.onnx", parity=False)
    qt.ptq(tmp_path / "m.onnx", x.numpy(), tmp_path / "q.onnx", target=target, engines=(), samples=None)
    plan = (tmp_path / "q.ranges.json").read_text()
    assert ("cat" in plan.split('"int8_nodes"')[1].split("]")[0]) == joined
    branch = export_of_branch(tmp_path / "q.onnx", x.numpy())
    with torch.no_grad():
        pooled = torch.max_pool2d(torch.relu(net.stem(x)), 2)
        wide = torch.relu(net.wide(pooled)).numpy()
    assert decibels(wide, branch) > 25
    if joined:
        expected = ort.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"input": x.numpy()})[0]
        got = open_session(tmp_path / "q.onnx", "openvino").run({"input": x.numpy()})["output"]
        assert decibels(expected, got) > 25


def export_of_branch(path, x: np.ndarray) -> np.ndarray:
    """The wide branch of an INT8 file, before the join."""
    from quantrim.graph.core import ending_at
    from quantrim.graph.read import read_onnx
    from quantrim.graph.session import reference_session

    model = read_onnx(path)
    relus = [str(node.outputs[0].name) for node in model.graph if node.op_type == "Relu"]
    return reference_session(ending_at(model, relus[-1:])).run(None, {"input": x})[0]
