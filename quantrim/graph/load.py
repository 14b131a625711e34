"""Whatever the user brought, as an ONNX file of the float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantrim.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch


def model_in_folder(path: str | Path) -> Path:
    """The one .onnx file in a folder; any other path as it is, a folder of a Paddle model too.

    Raises:
        ModelError: several .onnx files lie in the folder.
    """
    path = Path(path)
    files = sorted(path.glob("*.onnx")) if path.is_dir() else []
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"{path}: several models lie in this folder; name one of {names}.")
    return files[0] if files else path


def as_onnx(
    model: str | Path | torch.nn.Module, folder: Path, example_inputs: Any = None, data: Any = None
) -> Path:
    """Path of an ONNX file for whatever the user brought; new files go into ``folder``.

    Raises:
        ModelError: the model can't be converted.
        ConfigError: an nn.Module came without example inputs, or the object is no model.
    """
    if isinstance(model, str | Path):
        path = model_in_folder(model)
        if path.is_dir() or path.suffix in (".pdmodel", ".json"):
            from quantrim.graph.from_paddle import paddle_to_onnx

            return paddle_to_onnx(path, folder / "model.onnx")
        return path
    import torch

    from quantrim.graph.from_torch import export_onnx

    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"a {type(model).__name__} is no model; give an .onnx path or an nn.Module.")
    if example_inputs is None:
        if not isinstance(data, np.ndarray | torch.Tensor):
            raise ConfigError("an nn.Module needs example_inputs=..., a batch of its inputs, to be exported.")
        example_inputs = torch.as_tensor(data[:1])
    export_onnx(model, example_inputs, folder / "model.onnx")
    return folder / "model.onnx"
