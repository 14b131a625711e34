"""A finished file once more, with the caller's numpy inside: uint8 image in, answer out."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from quantrim.errors import ConfigError
from quantrim.files import require_onnx_output
from quantrim.graph.feeds import ImagePreprocess
from quantrim.graph.read import read_onnx
from quantrim.graph.session import save_model
from quantrim.recipes.deployment import read_deployment
from quantrim.rewrites import give_answer, take_images
from quantrim.rewrites.files import ask_precision, asked_precision
from quantrim.vision.data.color import Normalize

#: Numbers of axes of logits over classes: (N, C) and (N, C, H, W).
_LOGITS = (2, 4)


def write_image_file(model: Path, output: Path, prepared: Path | ImagePreprocess) -> tuple[int, ...]:
    """Write a file that takes uint8 images (N, H, W, C) of the model's size and answers with classes.

    Resizing stays with the caller. The outputs of detectors, and others that are no logits, stay as they are.

    Args:
        model: .onnx file, float or quantized, which takes normalised images (N, C, H, W).
        output: .onnx file; it asks for the precision that the model asks for.
        prepared: how images become inputs: a deploy.yaml, or mean and std.

    Returns:
        Shape of the input, batch first; 0 for an open axis.

    Raises:
        ConfigError: the deploy.yaml does not normalise, or mean and std don't fit the channels.
        ModelError: the input is no image.
    """
    require_onnx_output(output, model)
    source = read_onnx(model)
    mean, std = _normalisation(prepared)
    made = take_images(source, mean, std)
    if _gives_logits(made, prepared):
        made = give_answer(made, "classes")
    ask_precision(made, asked_precision(model))
    save_model(made, output)
    shape = made.graph.inputs[0].shape
    return tuple(size if isinstance(size, int) else 0 for size in shape or ())


def _normalisation(prepared: Path | ImagePreprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if isinstance(prepared, ImagePreprocess):
        return prepared.mean, prepared.std
    found = [one for one in read_deployment(prepared).transforms if isinstance(one, Normalize)]
    if len(found) != 1:
        raise ConfigError(
            f"{prepared}: {len(found)} transforms normalise; an image file takes in exactly one.",
            field="transforms",
        )
    return tuple(found[0].mean), tuple(found[0].std)


def _gives_logits(model: ir.Model, prepared: Path | ImagePreprocess) -> bool:
    if isinstance(prepared, Path):
        told = read_deployment(prepared)
        if told.task == "detection" or told.output not in ("none", "softmax"):
            return False
    first = model.graph.outputs[0]
    real = first.dtype == ir.DataType.FLOAT and first.shape is not None
    return real and len(model.graph.outputs) == 1 and len(first.shape or ()) in _LOGITS
