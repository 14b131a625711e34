"""Detectors in the recipes: files with their decoder, what ``deploy.yaml`` says of it, outputs to be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantrim.detection import Decoder, Thresholds, decoder_to_json
from quantrim.engines import Session
from quantrim.errors import ConfigError
from quantrim.graph.from_torch import export_onnx, numbered
from quantrim.recipes.loading import Loaded
from quantrim.recipes.predict import Run
from quantrim.vision.detection.distillation import box_distillation
from quantrim.vision.detection.tail import DECODED, SUPPRESSED, attach_tail, decoder_behind
from quantrim.vision.models.detection import is_detector, require_detector
from quantrim.vision.views import Predict

#: What a detector's file may end with: its maps, boxes and scores, or rows after suppression.
OUTPUT_OPS = ("none", "raw", "decoded", "nms")


def require_output_op(output_op: str) -> None:
    """Raise ConfigError unless a detector's file may end so."""
    if output_op not in OUTPUT_OPS:
        raise ConfigError(
            f"output_op {output_op!r}; of a detector legal: {', '.join(OUTPUT_OPS)}.", field="output_op"
        )


def export_detector(
    model: nn.Module,
    example: Tensor,
    output: Path,
    output_op: str,
    thresholds: Thresholds,
    *,
    dynamic: bool,
    opset: int = 18,
) -> float:
    """Write a detector's ONNX file.

    Args:
        model: the detector.
        example: input of its shape.
        output: .onnx file.
        output_op: one of :data:`OUTPUT_OPS`.
        thresholds: of the suppression in the file.
        dynamic: leave the batch axis open.
        opset: ONNX opset.

    Returns:
        Largest absolute difference between torch and ONNX Runtime over the maps.
    """
    require_output_op(output_op)
    maps = len(model.eval()(example))
    difference = export_onnx(
        model,
        example,
        output,
        dynamic_batch=dynamic,
        opset=opset,
        input_names=["image"],
        output_names=numbered("map", maps),
    )
    finish(output, model, output_op, thresholds)
    return difference


def finish(path: Path, model: nn.Module, output_op: str, thresholds: Thresholds) -> None:
    """Put the decoder, and the suppression, behind the maps of a file as ``output_op`` says."""
    if output_op in ("decoded", "nms"):
        decoder = require_detector(model).decoder
        attach_tail(path, decoder, thresholds=thresholds if output_op == "nms" else None)


def deploy_keys(model: nn.Module, output_op: str, thresholds: Thresholds) -> dict[str, Any]:
    """What ``deploy.yaml`` says of a detector: how outputs are read, and which boxes are told."""
    names = {"decoded": DECODED, "nms": SUPPRESSED}.get(output_op, ())
    decoder = decoder_behind(names, require_detector(model).decoder)
    chosen = {name: getattr(thresholds, name) for name in ("score", "iou", "before", "keep")}
    return {"decoder": decoder_to_json(decoder), "thresholds": chosen}


def boxes_distance(teacher: nn.Module) -> Callable[[Any, Any], Tensor] | None:
    """Loss of (a student's maps, this detector's maps); None for what is no detector."""
    return partial(box_distillation, decoder=teacher.decoder) if is_detector(teacher) else None


def boxes_run(loaded: Loaded, session: Session | None) -> tuple[Run, Decoder]:
    """All outputs of a detector, by its weights or by a file on an engine, and the decoder that reads them."""
    decoder = require_detector(loaded.model).decoder
    if session is None:
        return partial(_outputs, loaded.model), decoder
    names = [output.name for output in session.outputs]
    port = session.inputs[0].name
    return lambda images: [session.run({port: images})[name] for name in names], decoder_behind(names, decoder)


def only_output(predict: Predict) -> Run:
    """A predictor of one output as one of all outputs."""
    return lambda images: [predict(images)]


@torch.no_grad()
def _outputs(model: nn.Module, images: np.ndarray) -> list[np.ndarray]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return [one.float().cpu().numpy() for one in tree_leaves(model(torch.from_numpy(images).to(device)))]
