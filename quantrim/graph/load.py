"""Whatever the user brought, as an ONNX file of the float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    model: str | Path | torch.nn.Module,
    folder: Path,
    example_inputs: Any = None,
    data: Any = None,
    input_shape: tuple[int, ...] | None = None,
) -> Path:
    """Path of an ONNX file for whatever the user brought; new files go into ``folder``.

    Args:
        model: an ONNX file, a Paddle model or an nn.Module.
        folder: for new files.
        example_inputs: for an nn.Module: what to export it with; the first batch of the data by default.
        data: what it is calibrated on; an iterator must come as :class:`quantrim.graph.peek.Peeked`, which
            gives its first batch again.
        input_shape: of the first input, where the data are files.

    Raises:
        ModelError: the model can't be converted.
        ConfigError: an nn.Module came without example inputs, or the object is no model.
        DataError: the module can't take the first batch.
    """
    if isinstance(model, str | Path):
        path = model_in_folder(model)
        if path.is_dir() or path.suffix in (".pdmodel", ".json"):
            from quantrim.graph.from_paddle import paddle_to_onnx

            return paddle_to_onnx(path, folder / "model.onnx")
        return path
    import torch

    from quantrim.graph.examples import example_of, given_example, input_names, require_float32
    from quantrim.graph.from_torch import export_onnx

    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"a {type(model).__name__} is no model; give an .onnx path or an nn.Module.")
    require_float32(model)
    if example_inputs is None:
        example = example_of(model, data, input_shape)
    else:
        example = given_example(model, example_inputs)
    export_onnx(model, example.inputs, folder / "model.onnx", input_names=input_names(example))
    return folder / "model.onnx"
