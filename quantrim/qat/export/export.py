"""From a trained module to the INT8 file that computes the same.

torch exports the module in float, with labels (:mod:`quantrim.qat.export.labels`). The graph is normalised as
for PTQ, which folds BatchNorm and keeps the labels; what they say becomes the plan for the writer. A weight's
codes are those of the training; the factor that folding has put on each of its channels goes to the scale, and
its sign to the codes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from quantrim.errors import ModelError
from quantrim.files import size_mb
from quantrim.graph import normalize
from quantrim.graph.from_torch import numbered
from quantrim.graph.ops import OF_ONNX
from quantrim.graph.session import save_model
from quantrim.placement import Plan, WeightQuantization
from quantrim.placement.qdq import write_qdq
from quantrim.qat.export.agreement import CodeAgreement, agreement
from quantrim.qat.export.engines import EngineAgreement, ask_engines, require_one
from quantrim.qat.export.labels import (
    DOMAIN,
    Mark,
    Marks,
    marked_model,
    marks_before_padding,
    multiplied,
    read_marks,
)
from quantrim.qat.export.trained import TakeWeights, TrainedWeight, trained_scales
from quantrim.qat.interceptor import LiveModule
from quantrim.ranges import ActivationScale, widen_for_bias
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import UNIT_SCALE

#: Largest relative L2 distance of a float output, given equal codes before it.
OUTPUT_TOLERANCE = 1e-3
#: Largest residual of "exported weight = factor of the channel * trained weight".
_FOLD_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the file.
        size_mb: its size, 10^6 bytes.
        plan: where quantizers stand in the file.
        agreement: comparison with the module, layer by layer, on the example.
        tensors: tensor of the file → tensor of the trace, for each quantized one.
        float_model: the same graph in float, with the trained weights.
        engines: the file on each installed engine of the target, beside the module's plain evaluation.
    """

    path: Path
    size_mb: float
    plan: Plan
    agreement: CodeAgreement
    tensors: Mapping[str, str]
    float_model: ir.Model = field(repr=False)
    engines: tuple[EngineAgreement, ...] = ()


def export_int8(
    live: LiveModule,
    path: str | Path,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    dynamic_batch: bool,
    opset: int,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
) -> ExportResult:
    """See :meth:`quantrim.qat.QAT.export`."""
    args, kwargs = example
    _require_finite(live.module)
    taken = TakeWeights(live.quantizers)
    with live.evaluating(taken):
        count = len(_flatten(live.module(*args, **kwargs)))
    names = outputs or numbered("output", count)
    trained = trained_scales(live, args, kwargs)
    with live.evaluating(Mark(live.quantizers)):
        marked = marked_model(live.module, args, kwargs, dynamic_batch, opset, inputs, names)
    model = normalize(marks_before_padding(marked))
    found = read_marks(model)
    scales = {tensor: trained[group] for tensor, group in found.groups.items()}
    weights = {
        name: folded_weight(model, name, taken.weights.get(site), scales) for site, name in found.sites.items()
    }
    plan = _plan(live, model, found)
    quantized = write_qdq(model, plan, scales, weights, int32_bias=live.target.bias == "int32")
    quantized.opset_imports.pop(DOMAIN, None)
    compared = agreement(live, quantized, found.tensors, trained, args, kwargs)
    _require_agreement(compared, path)
    answers = _save_asked(live, quantized, Path(path), args, kwargs)
    model.opset_imports.pop(DOMAIN, None)
    return ExportResult(Path(path), size_mb(path), plan, compared, found.tensors, model, answers)


def _save_asked(
    live: LiveModule, model: ir.Model, path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[EngineAgreement, ...]:
    """Write a file once the engines of its target have computed it; the old one stays until then."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        save_model(model, trial)
        answers = ask_engines(live, trial, args, kwargs)
    require_one(answers, path)
    save_model(model, path)
    return answers


def _require_finite(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name!r} holds values that are NaN or infinite: training has diverged. Load an earlier state."
            )


def _require_agreement(compared: CodeAgreement, path: str | Path) -> None:
    if compared.beyond_edge:
        raise ModelError(
            f"{path}: {compared.beyond_edge} of {compared.codes} codes differ from the trained module, most of "
            f"them in {compared.worst_tensor!r}. If its BatchNorm has statistics far from those of others, "
            "training has diverged: load an earlier state. Else please report the model and its torch version."
        )
    if not compared.output_difference <= OUTPUT_TOLERANCE:
        raise ModelError(
            f"{path}: an output differs from the trained module by {compared.output_difference:.1e} (relative "
            "L2). Please report the model and its torch version."
        )


def _flatten(outputs: Any) -> list[Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, Tensor)]


def folded_weight(
    model: ir.Model, name: str, weight: TrainedWeight | None, scales: Mapping[str, ActivationScale]
) -> WeightCodes:
    """Codes of a weight with the factor of each channel, as the file's own float weight shows it.

    Args:
        model: normalised float model.
        name: node of the layer.
        weight: the weight as trained; None for a BatchNorm that became a depthwise 1x1 convolution.
        scales: scale of every quantized tensor of the file.

    Raises:
        ModelError: the file's weight is not the trained one times a factor of each channel.
    """
    node = next(n for n in model.graph if n.name == name)
    exported = _constant(node, 1)
    assert exported is not None
    weight = weight or unit_weight(exported)
    axis = weight.axis
    rows, codes = _rows(weight.raw, axis), _rows(weight.codes, axis)
    if node.op_type in ("Gemm", "MatMul"):
        kept = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
        file_axis = 0 if kept else 1
    else:
        file_axis = axis
    target = _rows(exported, file_axis)
    if target.shape != rows.shape:
        raise ModelError(f"layer {name!r}: weight {exported.shape} in the file, {weight.raw.shape} trained.")
    factors = _factors(rows, target, name)
    trained = np.broadcast_to(weight.scales, factors.shape)
    folded = np.maximum(np.abs(factors) * trained, np.finfo(np.float32).tiny * 2**24).astype(np.float32)
    signed = codes * np.where(factors < 0, -1, 1).astype(np.int8)[:, None]
    signed[factors == 0] = 0
    bias = _constant(node, 2)
    source = scales[str(multiplied(node).name)].scale
    wide = widen_for_bias(folded, source, bias, exported, file_axis)
    coarse = wide > folded * (1 + 1e-5)
    signed[coarse] = np.rint(signed[coarse] * (folded / wide)[coarse, None])
    shape = np.moveaxis(exported, file_axis, 0).shape
    result = np.moveaxis(signed.reshape(shape), 0, file_axis).astype(np.int8)
    return WeightCodes(np.ascontiguousarray(result), np.where(coarse, wide, folded), file_axis)


def unit_weight(exported: np.ndarray) -> TrainedWeight:
    """Weight of ones: code 127 in every channel, whose factor is the whole weight."""
    channels = exported.shape[0]
    ones = np.ones((channels, 1, 1, 1), np.float32)
    return TrainedWeight(ones, np.full(ones.shape, 127, np.int8), np.full(channels, UNIT_SCALE, np.float32), 0)


def _rows(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _factors(rows: np.ndarray, target: np.ndarray, name: str) -> np.ndarray:
    """float64[channels]: target = factor * rows, by least squares; 1 for a channel of zeros."""
    rows, target = rows.astype(np.float64), target.astype(np.float64)
    energy = np.square(rows).sum(axis=1)
    factors = np.where(energy > 0, (rows * target).sum(axis=1) / np.maximum(energy, 1e-300), 1.0)
    residual = float(np.linalg.norm(target - factors[:, None] * rows))
    if residual > _FOLD_TOLERANCE * max(float(np.linalg.norm(target)), 1e-30):
        raise ModelError(
            f"layer {name!r}: the exported weight is not the trained one times a factor of each channel. "
            "Skip this layer, and please report the model."
        )
    return factors


def _constant(node: ir.Node, position: int) -> np.ndarray | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _plan(live: LiveModule, model: ir.Model, found: Marks) -> Plan:
    nodes = {str(node.name): node for node in model.graph}
    leaders: dict[str, str] = {}
    for tensor, group in found.groups.items():
        leaders.setdefault(group, tensor)
    weights = {}
    for name in found.sites.values():
        node = nodes[name]
        constant, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        source = str(multiplied(node).name)
        assert constant is not None
        weights[name] = WeightQuantization(
            name, str(constant.name), 0, str(bias.name) if bias else None, source
        )
    runs = live.target.runs_int8
    readers = {name for name, _ in found.reads if OF_ONNX.get(nodes[name].op_type) in runs}
    return Plan(
        target=live.target.name,
        activation=live.target.activation,
        int8_nodes=frozenset(readers | set(weights)),
        groups={tensor: leaders[group] for tensor, group in found.groups.items()},
        reads=frozenset(found.reads),
        outputs=frozenset(found.outputs),
        weights=weights,
        float_nodes=live.quantizers.layout.plan.float_nodes,
    )
