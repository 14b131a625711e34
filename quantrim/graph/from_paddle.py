"""A Paddle inference model as ONNX, by paddle2onnx (the ``[paddle]`` extra)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quantrim.errors import ModelError, first_line

_OPSET = 17


def paddle_to_onnx(path: Path, output: Path) -> Path:
    """Convert a Paddle inference model.

    Args:
        path: folder with one ``*.json`` or ``*.pdmodel`` program and its ``*.pdiparams``, or the program file.
        output: the .onnx file to write.

    Returns:
        ``output``.

    Raises:
        ModelError: files are missing, the extra is not installed, or paddle2onnx can't convert the model.
    """
    program, weights = _files(path)
    if importlib.util.find_spec("paddle2onnx") is None:
        raise ModelError(
            f"{path}: a Paddle model needs paddle2onnx. Install it with: pip install 'quantrim[paddle]'"
        )
    import paddle2onnx

    try:
        paddle2onnx.export(
            str(program),
            str(weights),
            save_file=str(output),
            opset_version=_OPSET,
            enable_onnx_checker=True,
            verbose=False,
        )
    except Exception as error:  # the converter raises whatever its C++ side threw
        raise ModelError(f"{path}: paddle2onnx can't convert it: {first_line(error)}") from error
    if not output.is_file():
        raise ModelError(f"{path}: paddle2onnx wrote no file; an operator of the model has no ONNX form.")
    return output


def _files(path: Path) -> tuple[Path, Path]:
    """Program and weights of an inference model."""
    if path.is_dir():
        programs = sorted(path.glob("*.json")) + sorted(path.glob("*.pdmodel")) + sorted(path.glob("__model__"))
        if not programs:
            raise ModelError(f"{path}: no Paddle program (*.json, *.pdmodel or __model__) in this folder.")
        program = programs[0]
    else:
        program = path
    candidates = [program.with_suffix(".pdiparams"), *sorted(program.parent.glob("*.pdiparams"))]
    candidates += [program.parent / name for name in ("__params__", "params")]
    weights = next((candidate for candidate in candidates if candidate.is_file()), None)
    if weights is None or not program.is_file():
        raise ModelError(f"{path}: the weights (*.pdiparams) of {program.name} are missing.")
    return program, weights
