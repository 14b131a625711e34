"""Export of modules: what the file is, whatever state the module is in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from quantrim.engines import open_session
from quantrim.errors import ModelError
from quantrim.graph.from_torch import export_onnx
from quantrim.qat import QAT


def pooled() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_channels_last_weights_export_like_plain_ones(tmp_path: Path, engine: str):
    x = torch.randn(2, 3, 16, 16)
    module = pooled().eval()
    export_onnx(module, x, tmp_path / "plain.onnx")
    module.to(memory_format=torch.channels_last)
    export_onnx(module, x.to(memory_format=torch.channels_last), tmp_path / "last.onnx")
    assert operators(tmp_path / "last.onnx") == operators(tmp_path / "plain.onnx")
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    (got,) = open_session(tmp_path / "last.onnx", engine).run({"input": x.numpy()}).values()
    np.testing.assert_allclose(got, module(x).detach().numpy(), atol=1e-5)


def test_quantized_training_in_channels_last_exports_like_plain(tmp_path: Path):
    x = torch.randn(4, 3, 16, 16)
    files = []
    for layout in (torch.contiguous_format, torch.channels_last):
        module = pooled().to(memory_format=layout)
        qat = QAT(module, x)
        qat.calibrate([x])
        files.append(tmp_path / f"{layout}.onnx")
        qat.export(files[-1], x)
        assert module[0].weight.is_contiguous(memory_format=layout)
    assert operators(files[0]) == operators(files[1])


def test_a_failed_export_leaves_no_function_mode_behind(tmp_path: Path):
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    before = torch._C._len_torch_function_stack()
    with pytest.raises(ModelError, match="can't be exported"):
        export_onnx(Branching(), torch.ones(2, 3), tmp_path / "m.onnx")
    assert torch._C._len_torch_function_stack() == before
    assert not (tmp_path / "m.onnx").exists()


def test_a_file_names_modules_and_no_folders_of_the_users_code(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    export_onnx(net, torch.randn(1, 3, 8, 8), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).parent).encode() not in content
    assert b"stack_trace" not in content
    assert b"name_scopes" in content
